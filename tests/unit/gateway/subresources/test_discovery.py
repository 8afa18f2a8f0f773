"""Discovery, version, health and OpenAPI, and robustness against any request."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from api.version import API_LEVEL, VERSION
from gateway.subresources import discovery, openapi
from gateway.subresources.endpoints import ENDPOINTS
from tests.fakes.apiserver import Json
from tests.unit.gateway.lab import World, vm, vmi, world

GROUP = "/apis/subresources.kubevirt.io"
# As listed in KubeVirt's test of virt-api.
PUBLISHED_TEXT = """
expand-vm-spec virtualmachineinstances/addvolume virtualmachineinstances/backup
virtualmachineinstances/console virtualmachineinstances/evacuate/cancel virtualmachineinstances/filesystemlist
virtualmachineinstances/freeze virtualmachineinstances/guestosinfo virtualmachineinstances/objectgraph
virtualmachineinstances/pause virtualmachineinstances/portforward virtualmachineinstances/removevolume
virtualmachineinstances/reset virtualmachineinstances/sev/fetchcertchain
virtualmachineinstances/sev/injectlaunchsecret virtualmachineinstances/sev/querylaunchmeasurement
virtualmachineinstances/sev/setupsession virtualmachineinstances/softreboot virtualmachineinstances/unfreeze
virtualmachineinstances/unpause virtualmachineinstances/usbredir virtualmachineinstances/userlist
virtualmachineinstances/vnc virtualmachineinstances/vnc/screenshot virtualmachineinstances/vsock
virtualmachines/addvolume virtualmachines/evacuate/cancel virtualmachines/expand-spec
virtualmachines/memorydump virtualmachines/migrate virtualmachines/objectgraph virtualmachines/portforward
virtualmachines/removememorydump virtualmachines/removevolume virtualmachines/restart virtualmachines/start
virtualmachines/stop
"""
PUBLISHED = PUBLISHED_TEXT.split()
OURS = ["virtualmachineinstances/fence"]
"""Additional subresources that KubeVirt does not have."""


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        made.api.put("virtualmachines", vm("Manual"))
        made.api.put("virtualmachineinstances", vmi(conditions=("AgentConnected",)))
        yield made


@pytest.mark.parametrize("version", ["v1", "v1alpha3"])
async def test_discovery_resources_equal_kubevirts(gate: World, version: str) -> None:
    code, found = await gate.ask("GET", f"{GROUP}/{version}")
    assert (code, found["kind"], found["groupVersion"]) == (
        200,
        "APIResourceList",
        f"subresources.kubevirt.io/{version}",
    )
    assert sorted(each["name"] for each in found["resources"]) == sorted(PUBLISHED + OURS)
    assert all(each["namespaced"] and each["kind"] == "" for each in found["resources"])


async def test_the_group_prefers_v1(gate: World) -> None:
    _, group = await gate.ask("GET", GROUP)
    assert group["preferredVersion"]["version"] == "v1"
    assert [each["version"] for each in group["versions"]] == ["v1", "v1alpha3"]
    _, groups = await gate.ask("GET", "/apis")
    assert groups["groups"] == [group]
    assert GROUP in (await gate.ask("GET", "/"))[1]["paths"]


async def test_version_and_health(gate: World) -> None:
    _, found = await gate.ask("GET", f"{GROUP}/v1/version")
    assert found["gitVersion"] == f"v{API_LEVEL}+hyperlet.{VERSION}"
    # virtctl warns unless major and minor equal its own.
    assert re.fullmatch(r"v\d+\.\d+\.\d+\+[0-9A-Za-z.-]+", found["gitVersion"])
    assert set(found) >= {"gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"}


async def test_not_implemented_format_matches_client(gate: World) -> None:
    """The guestfs client prints text responses and no Status; the others print the Status message."""
    async with gate.proxy.get(f"https://127.0.0.1:{gate.port}{GROUP}/v1/guestfs") as response:
        assert (response.status, response.content_type) == (501, "text/plain")
        assert (await response.text()).startswith("guestfs tools are not implemented yet")
    code, found = await gate.ask("PUT", f"{GROUP}/v1/namespaces/default/virtualmachines/web/addvolume")
    assert (code, found["kind"], found["reason"]) == (501, "Status", "NotImplemented")
    assert "not implemented yet" in found["message"]
    path = f"{GROUP}/v1/namespaces/default/virtualmachines/web/memorydump"
    code, found = await gate.ask("PUT", path, body={"claimName": "dump-1"})
    assert code == 501 and found["message"].endswith("kubectl delete pvc dump-1"), "the client has made it already"
    code, found = await gate.ask("PUT", f"{GROUP}/v1/namespaces/default/virtualmachines/hello%00/start")
    assert (code, found["reason"]) == (400, "BadRequest")


async def test_health_response_is_cached(gate: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def version(*_: object) -> str:
        nonlocal asked
        asked += 1
        return "v1.36.0"

    monkeypatch.setattr(gate.services.kube, "server_version", version)
    for _ in range(5):
        code, found = await gate.ask("GET", f"{GROUP}/v1/healthz")
        assert (code, found) == (200, {"apiserver": {"connectivity": "ok", "version": "v1.36.0"}})
    assert asked == 1


async def test_health_reports_unreachable_api_server(gate: World) -> None:
    # The fake API server has no /version.
    code, found = await gate.ask("GET", "/healthz")
    assert (code, found["apiserver"]["connectivity"]) == (500, "failed")


# ---- OpenAPI --------------------------------------------------------------------------------------------------------


def references(found: Any) -> list[str]:
    if isinstance(found, dict):
        return [found["$ref"]] if "$ref" in found else [each for value in found.values() for each in references(value)]
    return [each for value in found for each in references(value)] if isinstance(found, list) else []


@pytest.mark.parametrize("document", [openapi.version2(), openapi.version3("v1"), openapi.version3("v1alpha3")])
def test_openapi_document_is_complete(document: Json) -> None:
    operations = [each for path in document["paths"].values() for each in path.values()]
    names = [each["operationId"] for each in operations]
    assert len(names) == len(set(names)) > 30
    for path, methods in document["paths"].items():
        for operation in methods.values():
            named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
    for reference in references(document):
        part = document
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]


def test_openapi_2_has_only_openapi_2_keywords() -> None:
    # kubectl parses the merged document strictly: one unknown keyword disables its validation.
    text = json.dumps(openapi.version2())
    for word in ("anyOf", "oneOf", '"null"', "const", "prefixItems", "$defs"):
        assert word not in text


def test_openapi_hash_is_equal_in_all_replicas() -> None:
    assert openapi.index3() == openapi.index3()
    assert set(openapi.index3()["paths"]) == {f"apis/subresources.kubevirt.io/{each}" for each in ("v1", "v1alpha3")}
    assert [each["name"] for each in discovery.resources("v1")["resources"]] == sorted(PUBLISHED + OURS)


# ---- fuzzing --------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["dryRun", "paused", "gracePeriod", "gracePeriodSeconds", "unfreezeTimeout", "addedNodeSelector", "kind", "spec"]
)
BODIES = (
    st.binary(max_size=64)
    | JSON.map(lambda each: json.dumps(each).encode())
    | st.dictionaries(FIELDS, JSON | st.just(["All"]) | st.integers(-2, 2), max_size=4).map(
        lambda each: json.dumps(each).encode()
    )
)
NAMES = st.sampled_from(["web", "web", "other"]) | st.text(min_size=1, max_size=40)
QUERIES = st.dictionaries(
    st.sampled_from(["shared", "takeover", "moveCursor", "preserveSession", "port", "tls"]),
    st.text(max_size=8),
    max_size=2,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_request_gets_a_status(gate: World, data: st.DataObject) -> None:
    endpoint = data.draw(st.sampled_from(ENDPOINTS))
    version = data.draw(st.sampled_from(["v1", "v1alpha3"]))
    values = {key: data.draw(NAMES) for key in ("namespace", "name", "port", "protocol")}
    if data.draw(st.booleans()):
        values["namespace"] = "default"
    path = endpoint.path(version).format(**{key: quote(value, safe="") for key, value in values.items()})
    method = data.draw(st.sampled_from([endpoint.method, endpoint.method, "GET", "PUT", "POST", "DELETE"]))
    query = "&".join(f"{quote(key)}={quote(value)}" for key, value in data.draw(QUERIES).items())
    url = URL(f"https://127.0.0.1:{gate.port}{path}?{query}", encoded=True)
    body = data.draw(BODIES) if method != "GET" else None
    async with gate.proxy.request(method, url, data=body, headers={"X-Remote-User": "alice"}) as response:
        text = await response.text(errors="replace")
    assert response.status < 500 or response.status in (501, 502, 503), (method, path, text)
    assert "Traceback" not in text
    assert ".py" not in text
    if response.status >= 400 and response.status != 404:
        assert json.loads(text)["code"] == response.status
