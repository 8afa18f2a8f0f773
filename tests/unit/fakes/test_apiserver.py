"""The fake API server behaves as a real one: statuses and reasons, selectors, versions, patches, deletion."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.fakes.apiserver import FakeApi, Refusal, Write
from tests.waiting import until

Json = dict[str, Any]
MAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
VMS = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
VMIS = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances"


class Client:
    """Requests without any client library."""

    def __init__(self, api: FakeApi, session: aiohttp.ClientSession) -> None:
        self.api, self._session = api, session

    async def ask(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Json:
        """The body of a response, with the HTTP status as `http` and Retry-After as `retry`."""
        headers = {"Authorization": "Bearer good", "Content-Type": content}
        data = None if body is None else json.dumps(body)
        url = f"http://127.0.0.1:{self.api.port}{path}"
        async with self._session.request(method, url, data=data, headers=headers) as response:
            found: Json = await response.json()
            return {**found, "http": response.status, "retry": response.headers.get("Retry-After")}

    async def patch(self, path: str, body: Any, kind: str = "merge-patch") -> Json:
        return await self.ask("PATCH", path, body, f"application/{kind}+json")

    async def watch(self, path: str) -> list[tuple[str, Json]]:
        """The events of a watch that the server ends, without bookmarks."""
        async with self._session.get(
            f"http://127.0.0.1:{self.api.port}{path}", headers={"Authorization": "Bearer good"}
        ) as response:
            events = [json.loads(line) async for line in response.content]
        return [(event["type"], event["object"]) for event in events if event["type"] != "BOOKMARK"]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with FakeApi() as api, aiohttp.ClientSession() as session:
        yield Client(api, session)


def named(name: str, **more: Any) -> Json:
    return {"metadata": {"name": name, **more}}


def refused(answer: Json) -> tuple[int, str]:
    assert answer["kind"] == "Status" and answer["status"] == "Failure" and answer["code"] == answer["http"]
    return answer["http"], answer["reason"]


# ---- statuses


async def test_missing_objects_and_kinds_are_not_found(client: Client) -> None:
    answer = await client.ask("GET", f"{VMS}/web")
    assert refused(answer) == (404, "NotFound")
    assert answer["message"] == 'virtualmachines.kubevirt.io "web" not found'
    assert {"name": "web", "group": "kubevirt.io", "kind": "virtualmachines"}.items() <= answer["details"].items()
    client.api.unserved.add("virtualmachines")
    answer = await client.ask("GET", VMS)
    assert (refused(answer), answer["message"]) == (
        (404, "NotFound"),
        "the server could not find the requested resource",
    )


async def test_token_is_checked(client: Client) -> None:
    client.api.tokens.clear()
    assert refused(await client.ask("GET", MAPS)) == (401, "Unauthorized")


async def test_throttled_requests_get_retry_after(client: Client) -> None:
    client.api.throttled = 1
    answer = await client.ask("GET", MAPS)
    assert refused(answer) == (429, "TooManyRequests")
    assert (answer["retry"], answer["details"]["retryAfterSeconds"]) == ("1", 1)
    assert (await client.ask("GET", MAPS))["http"] == 200


async def test_refusal_of_the_test_is_sent(client: Client) -> None:
    client.api.refuse = lambda verb, resource, body: Refusal(403, "Forbidden", "quota") if verb == "create" else None
    assert refused(await client.ask("POST", MAPS, named("a"))) == (403, "Forbidden")


# ---- creation


async def test_created_object_gets_server_fields(client: Client) -> None:
    made = await client.ask("POST", MAPS, named("a"))
    meta = made["metadata"]
    assert made["http"] == 201 and meta["namespace"] == "default" and meta["generation"] == 1
    assert meta["uid"] and meta["creationTimestamp"] and int(meta["resourceVersion"]) == client.api.version
    again = await client.ask("POST", MAPS, named("a"))
    assert (refused(again), again["message"]) == ((409, "AlreadyExists"), 'configmaps "a" already exists')
    elsewhere = await client.ask("POST", "/api/v1/namespaces/other/configmaps", named("a"))
    assert elsewhere["http"] == 201 and elsewhere["metadata"]["uid"] != meta["uid"]


async def test_generated_names_differ(client: Client) -> None:
    body = {"metadata": {"generateName": "trial-"}}
    names = [(await client.ask("POST", MAPS, body))["metadata"]["name"] for _ in range(3)]
    assert len(set(names)) == 3 and all(name.startswith("trial-") and len(name) == 11 for name in names)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (named("a", namespace="other"), (400, "BadRequest")),
        (named("a", resourceVersion="5"), (400, "BadRequest")),
        ({"metadata": {}}, (422, "Invalid")),
    ],
)
async def test_bad_metadata_is_refused_on_creation(client: Client, body: Json, wanted: tuple[int, str]) -> None:
    assert refused(await client.ask("POST", MAPS, body)) == wanted


async def test_dry_run_stores_nothing(client: Client) -> None:
    assert (await client.ask("POST", f"{MAPS}?dryRun=All", named("a")))["http"] == 201
    assert client.api.of("configmaps") == [] and client.api.writes == []
    client.api.put("configmaps", named("a", namespace="default"))
    answer = await client.patch(f"{MAPS}/a?dryRun=All", {"data": {"x": "1"}})
    assert answer["data"] == {"x": "1"} and "data" not in client.api.of("configmaps")[0]


# ---- lists


async def test_lists_are_by_namespace_and_selector(client: Client) -> None:
    for namespace, name, labels in (("one", "a", {"app": "x"}), ("one", "b", {"app": "y"}), ("two", "c", {"app": "x"})):
        client.api.put("configmaps", named(name, namespace=namespace, labels=labels))

    async def found(path: str) -> list[str]:
        return [item["metadata"]["name"] for item in (await client.ask("GET", path))["items"]]

    assert await found("/api/v1/configmaps") == ["a", "b", "c"]
    assert await found("/api/v1/namespaces/one/configmaps") == ["a", "b"]
    assert await found("/api/v1/configmaps?labelSelector=app%3Dx") == ["a", "c"]
    assert await found("/api/v1/configmaps?labelSelector=app%21%3Dx") == ["b"]
    assert await found("/api/v1/configmaps?labelSelector=app%20in%20(y,z),app") == ["b"]
    assert await found("/api/v1/configmaps?labelSelector=app%20notin%20(y)") == ["a", "c"]
    assert await found("/api/v1/configmaps?labelSelector=%21app") == []
    assert await found("/api/v1/configmaps?fieldSelector=metadata.name%3Dc") == ["c"]
    assert await found("/api/v1/configmaps?fieldSelector=metadata.namespace%21%3Done") == ["c"]


async def test_fields_are_selected_as_the_kind_allows(client: Client) -> None:
    client.api.put(
        "pods", {**named("a", namespace="default"), "spec": {"nodeName": "n1"}, "status": {"phase": "Failed"}}
    )
    client.api.put("pods", {**named("b", namespace="default"), "spec": {}, "status": {"phase": "Running"}})
    for selector, wanted in (
        ("spec.nodeName%3Dn1", ["a"]),
        ("spec.nodeName%3D", ["b"]),
        ("status.phase%21%3DFailed,spec.nodeName%21%3Dn1", ["b"]),
    ):
        answer = await client.ask("GET", f"{PODS}?fieldSelector={selector}")
        assert [item["metadata"]["name"] for item in answer["items"]] == wanted
    answer = await client.ask("GET", f"{PODS}?fieldSelector=spec.hostname%3Dx")
    assert (refused(answer), answer["message"]) == ((400, "BadRequest"), "field label not supported: spec.hostname")


async def test_pages_of_a_list_are_of_one_version(client: Client) -> None:
    for name in "abcde":
        client.api.put("configmaps", named(name, namespace="default"))
    first = await client.ask("GET", f"{MAPS}?limit=2")
    assert first["metadata"]["remainingItemCount"] == 3
    client.api.remove("configmaps", "d")
    client.api.put("configmaps", named("f", namespace="default"))
    second = await client.ask("GET", f"{MAPS}?limit=10&continue={first['metadata']['continue']}")
    assert [item["metadata"]["name"] for item in (*first["items"], *second["items"])] == list("abcde")
    assert second["metadata"] == {"resourceVersion": first["metadata"]["resourceVersion"]}


async def test_continue_token_expires(client: Client) -> None:
    for name in "abc":
        client.api.put("configmaps", named(name, namespace="default"))
    first = await client.ask("GET", f"{MAPS}?limit=1")
    client.api.put("configmaps", named("d", namespace="default"))
    client.api.compact()
    answer = await client.ask("GET", f"{MAPS}?limit=1&continue={first['metadata']['continue']}")
    assert refused(answer) == (410, "Expired")


# ---- watches


async def test_watch_resumes_at_a_version(client: Client) -> None:
    client.api.put("configmaps", named("a", namespace="default"))
    start = client.api.version
    client.api.put("configmaps", named("b", namespace="default"))
    client.api.put("secrets", named("s", namespace="default"))
    client.api.patch("configmaps", "b", {"data": {"x": "1"}})
    client.api.remove("configmaps", "a")
    events = await client.watch(f"{MAPS}?watch=true&resourceVersion={start}&timeoutSeconds=0.2")
    assert [(change, obj["metadata"]["name"]) for change, obj in events] == [
        ("ADDED", "b"),
        ("MODIFIED", "b"),
        ("DELETED", "a"),
    ]
    assert int(events[-1][1]["metadata"]["resourceVersion"]) == client.api.version


async def test_watch_without_version_begins_with_present_objects(client: Client) -> None:
    client.api.put("configmaps", named("a", namespace="default"))
    asyncio.get_running_loop().call_later(0.1, client.api.put, "configmaps", named("b", namespace="default"))
    events = await client.watch(f"{MAPS}?watch=true&timeoutSeconds=0.5")
    assert [(change, obj["metadata"]["name"]) for change, obj in events] == [("ADDED", "a"), ("ADDED", "b")]


async def test_watch_sees_objects_enter_and_leave_the_selection(client: Client) -> None:
    start = client.api.version
    client.api.put("configmaps", named("a", namespace="default", labels={"app": "x"}))
    client.api.put("configmaps", named("a", namespace="default", labels={"app": "y"}))
    client.api.put("configmaps", named("a", namespace="default", labels={"app": "y", "more": "z"}))
    client.api.put("configmaps", named("a", namespace="default", labels={"app": "x"}))
    client.api.remove("configmaps", "a")
    path = f"{MAPS}?watch=true&resourceVersion={start}&timeoutSeconds=0.2&labelSelector=app%3Dx"
    events = await client.watch(path)
    assert [change for change, _ in events] == ["ADDED", "DELETED", "ADDED", "DELETED"]
    # The object as it was, with the version of the change.
    assert events[1][1]["metadata"]["labels"] == {"app": "x"}
    versions = [int(obj["metadata"]["resourceVersion"]) for _, obj in events]
    assert versions == sorted(set(versions))


async def test_watch_from_an_old_version_is_expired(client: Client) -> None:
    client.api.put("configmaps", named("a", namespace="default"))
    client.api.compact()
    ((change, status),) = await client.watch(f"{MAPS}?watch=true&resourceVersion=5")
    assert (change, status["code"], status["reason"]) == ("ERROR", 410, "Expired")


async def test_watch_gets_bookmarks_on_request(client: Client) -> None:
    url = f"http://127.0.0.1:{client.api.port}{MAPS}?watch=true&resourceVersion=100&timeoutSeconds=0.2"
    for more, wanted in (("&allowWatchBookmarks=true", [("BOOKMARK", "100")]), ("", [])):
        async with client._session.get(url + more, headers={"Authorization": "Bearer good"}) as response:
            events = [json.loads(line) async for line in response.content]
        assert [(event["type"], event["object"]["metadata"]["resourceVersion"]) for event in events] == wanted


async def test_watches_break_when_the_server_leaves(client: Client) -> None:
    task = asyncio.create_task(client.watch(f"{MAPS}?watch=true&resourceVersion=100"))
    await until(lambda: client.api._watchers)
    client.api.leave()
    with pytest.raises(aiohttp.ClientError):
        await task
    with pytest.raises(aiohttp.ClientError):
        await client.ask("GET", MAPS)


# ---- patches


async def test_stale_version_conflicts(client: Client) -> None:
    made = await client.ask("POST", MAPS, named("a"))
    version = made["metadata"]["resourceVersion"]
    changed = await client.patch(f"{MAPS}/a", {"metadata": {"resourceVersion": version}, "data": {"x": "1"}})
    assert changed["http"] == 200 and changed["metadata"]["resourceVersion"] != version
    answer = await client.patch(f"{MAPS}/a", {"metadata": {"resourceVersion": version}, "data": {"x": "2"}})
    assert refused(answer) == (409, "Conflict")
    assert answer["message"].startswith('Operation cannot be fulfilled on configmaps "a": the object has been modified')
    replace = [{"op": "replace", "path": "/metadata/resourceVersion", "value": version}]
    assert refused(await client.patch(f"{MAPS}/a", replace, "json-patch")) == (409, "Conflict")


async def test_another_uid_is_invalid(client: Client) -> None:
    await client.ask("POST", MAPS, named("a"))
    answer = await client.patch(f"{MAPS}/a", {"metadata": {"uid": "another"}})
    assert refused(answer) == (422, "Invalid")
    assert [cause["field"] for cause in answer["details"]["causes"]] == ["metadata.uid"]


async def test_patch_without_effect_writes_nothing(client: Client) -> None:
    made = await client.ask("POST", MAPS, {**named("a"), "data": {"x": "1"}})
    again = await client.patch(f"{MAPS}/a", {"data": {"x": "1", "y": None}})
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


async def test_json_patch(client: Client) -> None:
    await client.ask("POST", MAPS, {**named("a"), "data": {"x": "1", "a/b": "2"}})
    operations = [
        {"op": "test", "path": "/data/x", "value": "1"},
        {"op": "remove", "path": "/data/a~1b"},
        {"op": "replace", "path": "/data/x", "value": "3"},
        {"op": "add", "path": "/list", "value": [1]},
        {"op": "add", "path": "/list/-", "value": 2},
    ]
    changed = await client.patch(f"{MAPS}/a", operations, "json-patch")
    assert (changed["data"], changed["list"]) == ({"x": "3"}, [1, 2])


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/data/x", "value": "2"},
        {"op": "test", "path": "/data/missing", "value": "2"},
        {"op": "remove", "path": "/data/missing"},
        {"op": "replace", "path": "/data/missing", "value": "2"},
        {"op": "add", "path": "/missing/x", "value": "2"},
    ],
)
async def test_failed_json_patch_changes_nothing(client: Client, operation: Json) -> None:
    made = await client.ask("POST", MAPS, {**named("a"), "data": {"x": "1"}})
    first = {"op": "add", "path": "/data/y", "value": "1"}
    assert refused(await client.patch(f"{MAPS}/a", [first, operation], "json-patch")) == (422, "Invalid")
    assert client.api.find("configmaps", "a")["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


async def test_conditions_are_merged_by_type_in_a_strategic_patch(client: Client) -> None:
    client.api.put("pods", {**named("p", namespace="default"), "spec": {}, "status": {}})
    for type in ("Ready", "Other", "Ready"):
        body = {"status": {"conditions": [{"type": type, "status": "True"}]}}
        changed = await client.patch(f"{PODS}/p/status", body, "strategic-merge-patch")
    assert [each["type"] for each in changed["status"]["conditions"]] == ["Ready", "Other"]


async def test_status_is_written_by_its_subresource_only(client: Client) -> None:
    made = await client.ask("POST", VMS, {**named("web"), "spec": {}, "status": {"ready": True}})
    assert "status" not in made
    body = {"metadata": {"labels": {"a": "b"}}, "spec": {"runStrategy": "Always"}, "status": {"ready": True}}
    changed = await client.patch(f"{VMS}/web/status", body)
    assert (changed["spec"], changed["status"]) == ({}, {"ready": True}) and "labels" not in changed["metadata"]
    assert changed["metadata"]["generation"] == 1
    changed = await client.patch(f"{VMS}/web", {"spec": {"runStrategy": "Always"}, "status": {"ready": False}})
    assert (changed["spec"], changed["status"]) == ({"runStrategy": "Always"}, {"ready": True})
    assert changed["metadata"]["generation"] == 2


async def test_kind_without_status_subresource_has_an_ordinary_status(client: Client) -> None:
    made = await client.ask("POST", VMIS, {**named("web"), "spec": {}, "status": {"phase": "Pending"}})
    assert made["status"] == {"phase": "Pending"}
    changed = await client.patch(f"{VMIS}/web", {"status": {"phase": "Running"}})
    assert changed["status"] == {"phase": "Running"} and changed["metadata"]["generation"] == 2
    changed = await client.patch(f"{VMIS}/web", {"metadata": {"labels": {"a": "b"}}})
    assert changed["metadata"]["generation"] == 2


async def test_status_of_a_pod_takes_annotations(client: Client) -> None:
    client.api.put("pods", {**named("p", namespace="default"), "spec": {"a": 1}, "status": {"phase": "Running"}})
    body = {"metadata": {"annotations": {"a": "b"}}, "spec": {"a": 2}}
    changed = await client.patch(f"{PODS}/p/status", body)
    assert changed["metadata"]["annotations"] == {"a": "b"} and changed["spec"] == {"a": 1}


# ---- deletion


async def test_deletion_checks_preconditions(client: Client) -> None:
    made = await client.ask("POST", MAPS, named("a"))
    for preconditions in ({"uid": "another"}, {"resourceVersion": "1"}):
        answer = await client.ask("DELETE", f"{MAPS}/a", {"preconditions": preconditions})
        assert refused(answer) == (409, "Conflict") and "Precondition failed" in answer["message"]
    answer = await client.ask("DELETE", f"{MAPS}/a", {"preconditions": {"uid": made["metadata"]["uid"]}})
    assert (answer["kind"], answer["status"], answer["http"]) == ("Status", "Success", 200)
    assert refused(await client.ask("DELETE", f"{MAPS}/a", {})) == (404, "NotFound")


async def test_finalizers_delay_deletion(client: Client) -> None:
    await client.ask("POST", VMS, {**named("web", finalizers=["a/b", "c/d"]), "spec": {}})
    going = await client.ask("DELETE", f"{VMS}/web", {})
    assert going["kind"] != "Status" if "kind" in going else True
    assert going["metadata"]["deletionTimestamp"] and going["metadata"]["generation"] == 2
    answer = await client.patch(f"{VMS}/web", {"metadata": {"finalizers": ["a/b", "c/d", "e/f"]}})
    assert refused(answer) == (422, "Invalid") and "no new finalizers" in answer["message"]
    kept = await client.patch(f"{VMS}/web", {"metadata": {"finalizers": ["a/b"], "deletionTimestamp": None}})
    assert kept["metadata"]["deletionTimestamp"] == going["metadata"]["deletionTimestamp"]
    last = await client.patch(f"{VMS}/web", {"metadata": {"finalizers": []}})
    assert last["http"] == 200 and client.api.find("virtualmachines", "web") is None


async def test_running_pod_is_deleted_gracefully(client: Client) -> None:
    status = {"phase": "Running"}
    client.api.put("pods", {**named("p", namespace="default"), "spec": {"nodeName": "n1"}, "status": status})
    going = await client.ask("DELETE", f"{PODS}/p", {})
    assert going["metadata"]["deletionTimestamp"] and client.api.find("pods", "p")
    client.api.put("pods", {**named("q", namespace="default"), "spec": {"nodeName": "n1"}, "status": status})
    await client.ask("DELETE", f"{PODS}/q", {"gracePeriodSeconds": 0})
    assert client.api.find("pods", "q") is None


# ---- what tests see


async def test_requests_are_counted_and_writes_kept(client: Client) -> None:
    await client.ask("POST", MAPS, named("a"))
    await client.ask("POST", MAPS, named("a"))
    await client.patch(f"{MAPS}/a", {"data": {"x": "1"}})
    assert client.api.calls == {("create", "configmaps"): 1, ("patch", "configmaps"): 1}
    assert client.api.conflicts == 1
    assert [(write.verb, write.resource) for write in client.api.writes] == [
        ("create", "configmaps"),
        ("patch", "configmaps"),
    ]


async def test_write_is_done_before_it_is_answered(client: Client) -> None:
    reached = asyncio.Event()

    async def hang(write: Write) -> None:
        reached.set()
        await asyncio.sleep(60)

    client.api.on_write = hang
    task = asyncio.create_task(client.ask("POST", MAPS, named("a")))
    await reached.wait()
    assert client.api.find("configmaps", "a") and not task.done()
    task.cancel()
