"""Client and cache with a fake API server on loopback."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api import errors
from api.k8s.objects import ConfigMap, Pod
from kit.cache import Store
from kit.kube import Kube, Undecodable, selector_text
from tests.fakes.apiserver import FakeApi, Refusal
from tests.waiting import until

Json = dict[str, object]


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi() as server:
        yield server


@pytest.fixture
async def kube(api: FakeApi, tmp_path: Path) -> AsyncIterator[Kube]:
    async with Kube.connect("test", api.kubeconfig(tmp_path)) as client:
        yield client


def config_map(name: str, **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": data}


async def test_object_is_created_read_patched_and_deleted(api: FakeApi, kube: Kube) -> None:
    made = await kube.create(ConfigMap, config_map("a", x="1"))
    assert made.metadata.uid and made.data == {"x": "1"}
    assert made.metadata.managedFields is None, "managedFields are kept in memory"
    changed = await kube.patch(ConfigMap, "default", "a", {"data": {"x": None, "y": "2"}})
    assert changed.data == {"y": "2"}
    assert (await kube.get(ConfigMap, "default", "a")).data == {"y": "2"}
    assert await kube.delete(ConfigMap, "default", "a", uid=made.metadata.uid) is None
    assert await kube.delete(ConfigMap, "default", "a") is None, "deleting a missing object is no error"
    assert api.agents == {"hyperlet-test/0.1.0"}


async def test_delayed_deletion_returns_object(api: FakeApi, kube: Kube) -> None:
    api.put("pods", {"kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": {"nodeName": "n"}})
    going = await kube.delete(Pod, "default", "p")
    assert going is not None and going.metadata.deletionTimestamp


@pytest.mark.parametrize(
    "refusal, kind",
    [
        (Refusal(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: q'), errors.Forbidden),
        (Refusal(409, "AlreadyExists", "exists"), errors.AlreadyExists),
        (Refusal(409, "Conflict", "modified"), errors.Conflict),
        (Refusal(429, "TooManyRequests", "slow down"), errors.ApiUnavailable),
        (Refusal(500, "InternalError", "oh"), errors.ApiUnavailable),
        (Refusal(404, "NotFound", "no"), errors.NotFound),
    ],
)
async def test_error_statuses_map_to_api_errors(
    api: FakeApi,
    kube: Kube,
    refusal: Refusal,
    kind: type[errors.HyperletError],
) -> None:
    api.refuse = lambda verb, plural, body: refusal
    with pytest.raises(kind) as caught:
        await kube.create(ConfigMap, config_map("a"))
    assert type(caught.value) is kind
    assert caught.value.message == refusal.body["message"]


async def test_invalid_object_error_has_field_paths(api: FakeApi, kube: Kube) -> None:
    causes = [{"field": "spec.x", "reason": "FieldValueInvalid", "message": "too long"}]
    api.refuse = lambda verb, plural, body: Refusal(422, "Invalid", "it is invalid", causes)
    with pytest.raises(errors.InvalidObject) as caught:
        await kube.create(ConfigMap, config_map("a"))
    assert caught.value.faults == [errors.Fault("spec.x", "FieldValueInvalid", "too long")]


async def test_transport_error_names_request(api: FakeApi, kube: Kube) -> None:
    api.leave()
    with pytest.raises(errors.ApiUnavailable, match="GET /api/v1/namespaces/default/configmaps/a"):
        await kube.get(ConfigMap, "default", "a")


async def test_failed_precondition_raises_conflict(api: FakeApi, kube: Kube) -> None:
    await kube.create(ConfigMap, config_map("a"))
    with pytest.raises(errors.Conflict):
        await kube.patch(ConfigMap, "default", "a", {"metadata": {"resourceVersion": "1"}, "data": {"x": "1"}})
    with pytest.raises(errors.Conflict):
        await kube.delete(ConfigMap, "default", "a", uid="another")
    with pytest.raises(errors.Conflict):
        await kube.delete(ConfigMap, "default", "a", resource_version="1")


async def test_rotated_token_is_read_again_after_401(api: FakeApi, tmp_path: Path) -> None:
    config, token = Path(api.kubeconfig(tmp_path)), tmp_path / "token"
    token.write_text("good")
    config.write_text(config.read_text().replace('"token": "good"', f'"tokenFile": "{token}"'))
    async with Kube.connect("test", str(config)) as kube:
        await kube.create(ConfigMap, config_map("a"))
        api.tokens = {"newer"}
        token.write_text("newer")
        await kube.get(ConfigMap, "default", "a")
        token.write_text("wrong")
        api.tokens = {"newest"}
        with pytest.raises(errors.Forbidden):
            await kube.get(ConfigMap, "default", "a")


async def test_long_list_is_fetched_in_chunks(api: FakeApi, kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.kube.CHUNK", 2)
    for number in range(5):
        api.put("configmaps", config_map(f"c{number}"))
    items, version = await kube.list(ConfigMap)
    assert [item.metadata.name for item in items] == ["c0", "c1", "c2", "c3", "c4"]
    assert version == str(api.version) and api.calls["list", "configmaps"] == 3


async def test_undecodable_object_does_not_hide_others(api: FakeApi, kube: Kube) -> None:
    api.put("configmaps", {**config_map("odd"), "data": "no map"})
    api.put("configmaps", config_map("even"))
    bad: list[Undecodable] = []
    items, _ = await kube.list(ConfigMap, bad=bad.append)
    assert [item.metadata.name for item in items] == ["even"]
    assert bad[0].metadata["name"] == "odd" and "data" in bad[0].message


def test_selectors() -> None:
    assert selector_text({"a": "b", "c": "d"}) == "a=b,c=d"
    assert selector_text("a!=b") == "a!=b"
    assert selector_text({}) is None


# ---- Events


async def test_repeated_event_is_counted_and_flood_is_dropped(api: FakeApi, kube: Kube) -> None:
    about = await kube.create(ConfigMap, config_map("a"))
    for _ in range(3):
        await kube.event(about, "Tried", "It did not work", "Warning")
    (event,) = api.of("events")
    assert event["count"] == 3 and event["type"] == "Warning" and event["source"] == {"component": "hyperlet-test"}
    assert event["involvedObject"]["uid"] == about.metadata.uid and event["involvedObject"]["kind"] == "ConfigMap"
    for number in range(60):
        await kube.event(about, "Tried", f"Try {number} did not work")
    assert api.calls["create", "events"] + api.calls["patch", "events"] == 25


async def test_failed_event_write_does_not_raise(api: FakeApi, kube: Kube) -> None:
    about = await kube.create(ConfigMap, config_map("a"))
    api.refuse = lambda verb, plural, body: Refusal(403, "Forbidden", "no")
    await kube.event(about, "Tried", "It did not work")
    assert not api.of("events")
    api.refuse = lambda verb, plural, body: None
    await kube.event(about, "Tried", "It did not work")
    assert len(api.of("events")) == 1


# ---- the cache


@pytest.fixture
async def store(kube: Kube) -> AsyncIterator[Store[ConfigMap]]:
    made = Store(kube, ConfigMap)
    yield made
    await made.stop()


def names(store: Store[ConfigMap]) -> list[str | None]:
    return sorted(item.metadata.name or "" for item in store.all())


async def test_store_follows_watch(api: FakeApi, store: Store[ConfigMap]) -> None:
    api.put("configmaps", config_map("a"))
    changes: list[tuple[bool, bool]] = []
    store.on_change(lambda old, new: changes.append((old is not None, new is not None)))
    store.start()
    await store.synced()
    api.put("configmaps", config_map("b"))
    api.patch("configmaps", "a", {"data": {"x": "1"}})
    api.remove("configmaps", "b")
    await until(lambda: len(changes) == 4)
    assert changes == [(False, True), (False, True), (True, True), (True, False)]
    found = store.get("default", "a")
    assert found and found.data == {"x": "1"} and names(store) == ["a"]


async def test_learned_object_is_visible_at_once_and_its_watch_event_is_ignored(
    api: FakeApi,
    kube: Kube,
    store: Store[ConfigMap],
) -> None:
    store.start()
    await store.synced()
    changes: list[object] = []
    store.on_change(lambda old, new: changes.append(new))
    made = await kube.create(ConfigMap, config_map("mine"))
    store.learn(made)
    assert names(store) == ["mine"]
    api.put("configmaps", config_map("later"))
    await until(lambda: "later" in names(store))
    assert len(changes) == 2, "the watch event of an own write was reported again"


async def test_learn_after_deletion_does_not_restore_object(
    api: FakeApi,
    kube: Kube,
    store: Store[ConfigMap],
) -> None:
    store.start()
    await store.synced()
    made = await kube.create(ConfigMap, config_map("brief"))
    api.remove("configmaps", "brief")
    api.put("configmaps", config_map("marker"))
    await until(lambda: "marker" in names(store))
    store.learn(made)
    assert names(store) == ["marker"]


async def test_expired_watch_relists_and_reports_only_differences(
    api: FakeApi,
    store: Store[ConfigMap],
) -> None:
    for name in ("a", "b"):
        api.put("configmaps", config_map(name))
    store.start()
    await store.synced()
    await until(lambda: store.connected)
    changes: list[tuple[str | None, bool]] = []
    store.on_change(lambda old, new: changes.append(((new or old).metadata.name, new is not None)))  # type: ignore[union-attr]
    api.leave()
    await until(lambda: not store.connected)
    del api.objects["configmaps", "default", "a"]
    api.objects["configmaps", "default", "c"] = {
        "metadata": {"name": "c", "namespace": "default", "resourceVersion": "500"}
    }
    api.version = 501
    api.compact()
    api.away = False
    await until(lambda: len(changes) == 2)
    assert sorted(changes) == [("a", False), ("c", True)] and api.calls["list", "configmaps"] == 2


async def test_broken_watch_resumes_at_last_version(api: FakeApi, store: Store[ConfigMap]) -> None:
    store.start()
    await store.synced()
    await until(lambda: store.connected)
    api.leave()
    await until(lambda: not store.connected)
    api.put("configmaps", config_map("meanwhile"))
    api.away = False
    await until(lambda: names(store) == ["meanwhile"])
    assert api.calls["list", "configmaps"] == 1


async def test_index_follows_objects(api: FakeApi, store: Store[ConfigMap]) -> None:
    store.index("colour", lambda item: [item.data["colour"]] if item.data and "colour" in item.data else [])
    store.start()
    await store.synced()
    api.put("configmaps", config_map("a", colour="red"))
    api.put("configmaps", config_map("b", colour="red"))
    await until(lambda: len(store.by("colour", "red")) == 2)
    api.patch("configmaps", "a", {"data": {"colour": "blue"}})
    await until(lambda: len(store.by("colour", "blue")) == 1)
    assert [item.metadata.name for item in store.by("colour", "red")] == ["b"]
    assert store.by("colour", "green") == []


async def test_store_filters_with_keep(api: FakeApi, kube: Kube) -> None:
    some = Store(kube, ConfigMap, labels={"mine": "yes"}, keep=lambda item: item.metadata.name != "b")
    for name in ("a", "b"):
        obj = config_map(name)
        obj["metadata"] = {"name": name, "namespace": "default", "labels": {"mine": "yes"}}
        api.put("configmaps", obj)
    api.put("configmaps", config_map("c"))
    some.start()
    await some.synced()
    assert names(some) == ["a"]
    await some.stop()


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("verb", ["create", "watch"])
async def test_retry_after_is_waited_for(api: FakeApi, kube: Kube, code: int, verb: str) -> None:
    refused: list[float] = []

    def refuse(found: str, _plural: str, _body: Json) -> Refusal | None:
        if found != verb or refused:
            return None
        refused.append(time.monotonic())
        return Refusal(code, "TooManyRequests", "slow down", retry_after="1")

    api.refuse = refuse
    if verb == "create":
        await kube.create(ConfigMap, config_map("a"))
    else:
        watch = kube.watch(ConfigMap, "0")
        api.put("configmaps", config_map("a"))
        assert "ADDED" in [(await anext(watch))[0], (await anext(watch))[0]]
        await watch.aclose()
    assert time.monotonic() - refused[0] >= 1
    assert api.calls[verb, "configmaps"] == 2 and kube.calls[verb, "configmaps", code] == 1


@pytest.mark.parametrize("code, header", [(429, ""), (500, "1"), (429, "soon")])
async def test_no_wait_without_a_usable_retry_after(api: FakeApi, kube: Kube, code: int, header: str) -> None:
    api.refuse = lambda verb, plural, body: Refusal(code, "TooManyRequests", "slow down", retry_after=header)
    with pytest.raises(errors.ApiUnavailable, match="slow down") as caught:
        await kube.get(ConfigMap, "default", "a")
    assert api.calls["get", "configmaps"] == 1 and caught.value.retry_seconds == 0


async def test_retry_after_beyond_the_timeout_is_left_to_the_caller(api: FakeApi, kube: Kube) -> None:
    api.refuse = lambda verb, plural, body: Refusal(429, "TooManyRequests", "slow down", retry_after="40")
    with pytest.raises(errors.ApiUnavailable, match="slow down") as caught:
        await kube.get(ConfigMap, "default", "a")
    assert api.calls["get", "configmaps"] == 1 and caught.value.retry_seconds == 40


async def test_repeated_retry_after_ends_with_the_timeout(
    api: FakeApi, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kit.kube.REQUEST_SECONDS", 2.5)
    api.refuse = lambda verb, plural, body: Refusal(429, "TooManyRequests", "slow down", retry_after="1")
    began = time.monotonic()
    with pytest.raises(errors.ApiUnavailable, match="slow down"):
        await anext(kube.watch(ConfigMap, "0"))
    assert time.monotonic() - began < 3.5 and 2 <= api.calls["watch", "configmaps"] <= 3
