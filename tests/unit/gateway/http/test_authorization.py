"""Authorization for the full subresource with the RBAC verb, and its short-lived cache."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from yarl import URL

from api import names
from gateway.http import authorization
from gateway.subresources.endpoints import ENDPOINTS, Endpoint
from tests.fakes.apiserver import Refusal
from tests.unit.gateway.lab import World, vm, vmi, world


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        made.api.put("virtualmachines", vm())
        made.api.put("virtualmachineinstances", vmi())
        yield made


def path_of(endpoint: Endpoint, version: str = "v1") -> str:
    values = {"namespace": "default", "name": "web", "port": "80", "protocol": "tcp"}
    return endpoint.path(version).format(**values)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: f"{each.method}-{each.name}-{len(each.parameters)}")
async def test_every_endpoint_is_authorized_by_its_full_subresource(gate: World, endpoint: Endpoint) -> None:
    gate.api.may = lambda user, verb, resource: False
    code, body = await gate.ask(endpoint.method, path_of(endpoint))
    assert code == 403, body
    assert body["reason"] == "Forbidden"
    (review,) = gate.api.reviews
    wanted = review["resourceAttributes"]
    assert wanted["group"] == names.SUBRESOURCE_GROUP
    assert wanted["verb"] == {"GET": "get", "PUT": "update"}[endpoint.method]
    assert "/".join(filter(None, (wanted["resource"], wanted["subresource"]))) == endpoint.name
    assert wanted["namespace"] == "default"
    assert wanted["name"] == ("web" if endpoint.subresource else "")
    assert sum(gate.node.called.values()) == 0


async def test_vnc_permission_does_not_include_screenshot(gate: World) -> None:
    gate.api.may = lambda user, verb, resource: resource == "virtualmachineinstances/vnc"
    code, _ = await gate.ask("GET", "virtualmachineinstances/web/vnc/screenshot")
    assert code == 403
    gate.api.may = lambda user, verb, resource: resource == "virtualmachineinstances/vnc/screenshot"
    code, png = await gate.ask("GET", "virtualmachineinstances/web/vnc/screenshot", user="bob")
    assert (code, png) == (200, gate.node.png)
    code, _ = await gate.ask("GET", "virtualmachineinstances/web/vnc", user="bob")
    assert code == 403


async def test_old_api_version_is_authorized_likewise(gate: World) -> None:
    gate.api.may = lambda user, verb, resource: False
    console = next(each for each in ENDPOINTS if each.subresource == "console")
    code, _ = await gate.ask("GET", path_of(console, "v1alpha3"))
    assert code == 403
    assert gate.api.reviews[0]["resourceAttributes"]["version"] == "v1alpha3"


async def test_forbidden_message_has_user_verb_and_resource(gate: World) -> None:
    gate.api.may = lambda user, verb, resource: False
    _, body = await gate.ask("GET", "virtualmachineinstances/web/console")
    assert body["message"] == (
        "virtualmachineinstances.subresources.kubevirt.io \"web\" is forbidden: User 'alice' cannot get resource "
        '"virtualmachineinstances/console" in API group "subresources.kubevirt.io" in the namespace "default": '
        "no role says so"
    )


async def test_decision_is_cached_briefly_per_user(gate: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "virtualmachines/web/expand-spec"
    for _ in range(3):
        assert (await gate.ask("GET", path))[0] == 200
    assert len(gate.api.reviews) == 1
    gate.api.may = lambda user, verb, resource: False
    assert (await gate.ask("GET", path, user="bob"))[0] == 403
    assert (await gate.ask("GET", path, groups=("others",)))[0] == 403
    assert len(gate.api.reviews) == 3
    # A revoked permission takes effect when the cache entry expires.
    now = asyncio.get_running_loop().time()
    kept = list(gate.services.authorizer._kept.values())
    assert kept
    assert all(until <= now + 5 for until, _ in kept)
    monkeypatch.setattr(authorization, "ALLOWED_SECONDS", -1)
    assert (await gate.ask("GET", "virtualmachines/web1/expand-spec"))[0] == 403
    gate.api.may = lambda user, verb, resource: True
    assert (await gate.ask("GET", path, user="carol"))[0] == 200
    assert (await gate.ask("GET", path, user="carol"))[0] == 200
    assert [each["user"] for each in gate.api.reviews[-2:]] == ["carol", "carol"]


async def test_decision_cache_is_bounded(gate: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorization, "KEPT", 5)
    for number in range(12):
        await gate.ask("GET", f"virtualmachines/web{number}/expand-spec")
    assert len(gate.services.authorizer._kept) == 5


async def test_unavailable_api_server_returns_503_with_retry_after(gate: World) -> None:
    gate.api.refuse = lambda verb, plural, body: (
        Refusal(500, "InternalError", "etcd is away") if plural == "subjectaccessreviews" else None
    )
    async with gate.proxy.get(
        "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/web/expand-spec",
        headers={"X-Remote-User": "alice"},
    ) as response:
        assert response.status == 503
        assert response.headers["Retry-After"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("virtualmachines/..%2F..%2F..%2Fsecrets/expand-spec", 400),
        ("virtualmachines/Web/expand-spec", 400),
        ("virtualmachines/" + "a" * 254 + "/expand-spec", 400),
        ("virtualmachines/web%00/expand-spec", 400),
        ("virtualmachines/web%0Aevil/expand-spec", 400),
        ("/apis/subresources.kubevirt.io/v1/namespaces/a%2Fb/virtualmachines/web/expand-spec", 400),
        ("/apis/subresources.kubevirt.io/v1/namespaces/a.b/virtualmachines/web/expand-spec", 400),
        ("virtualmachines/web/nonsense", 404),
        ("virtualmachines/web", 404),
        ("pods/web/log", 404),
        ("/apis/subresources.kubevirt.io/v2/namespaces/default/virtualmachines/web/start", 404),
    ],
)
async def test_invalid_names_send_no_review(gate: World, path: str, code: int) -> None:
    before = _asked(gate)
    whole = path if path.startswith("/") else f"/apis/subresources.kubevirt.io/v1/namespaces/default/{path}"
    url = URL(f"https://127.0.0.1:{gate.port}{whole}", encoded=True)
    async with gate.proxy.get(url, headers={"X-Remote-User": "alice"}) as response:
        assert response.status == code
        assert (await response.json())["kind"] == "Status"
    assert _asked(gate) == before


def _asked(gate: World) -> dict[tuple[str, str], int]:
    """Calls of the API server, without watches, which start asynchronously."""
    return {call: count for call, count in gate.api.calls.items() if call[0] != "watch"}


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "GET"])
async def test_other_methods_are_405(gate: World, method: str) -> None:
    code, body = await gate.ask(method, "virtualmachines/web/start")
    assert (code, body["reason"]) == (405, "MethodNotAllowed")
