"""Authentication by certificate, common name and headers over real TLS; forged requests are refused."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gateway.http.authentication import LIMIT, settings_of
from kit import tls
from tests.unit.gateway.lab import ROOT, Pki, World, vm, vmi, world
from tests.waiting import until

PUBLIC = [
    "/",
    "/apis",
    "/apis/subresources.kubevirt.io",
    "/apis/subresources.kubevirt.io/v1",
    "/apis/subresources.kubevirt.io/v1/",
    "/apis/subresources.kubevirt.io/v1alpha3",
    "/apis/subresources.kubevirt.io/v1/version",
    "/apis/subresources.kubevirt.io/v1alpha3/version",
    "/openapi/v2",
    "/openapi/v3",
    "/openapi/v3/apis/subresources.kubevirt.io/v1",
]
GUARDED = [
    f"{ROOT}/virtualmachineinstances/web/console",
    f"{ROOT}/virtualmachineinstances/web/vnc/screenshot",
    f"{ROOT}/virtualmachines/web/expand-spec",
    "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachines/web/nonsense",
    "/apis/subresources.kubevirt.io/v2",
]
ADMIN = {"X-Remote-User": "system:admin", "X-Remote-Group": "system:masters"}


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        made.api.put("virtualmachines", vm())
        made.api.put("virtualmachineinstances", vmi())
        yield made


async def refused(session: aiohttp.ClientSession, path: str, code: int = 401, **more: object) -> None:
    async with session.get(path, headers=ADMIN, **more) as response:  # type: ignore[arg-type]
        assert response.status == code
        body = await response.json()
    assert body["kind"] == "Status"
    assert body["code"] == code


@pytest.mark.parametrize("path", PUBLIC)
async def test_discovery_is_unauthenticated(gate: World, path: str) -> None:
    async with gate.session(None).get(path) as response:
        assert response.status == 200
        assert response.content_type == "application/json"


@pytest.mark.parametrize("path", GUARDED)
async def test_headers_without_certificate_return_401(gate: World, path: str) -> None:
    await refused(gate.session(None), path)
    assert gate.api.reviews == []


@pytest.mark.parametrize("path", GUARDED)
async def test_certificate_with_other_common_name_returns_401(gate: World, path: str) -> None:
    await refused(gate.session(gate.pki.client("kubelet")), path)
    assert gate.api.reviews == []


async def test_user_certificate_fails_handshake(gate: World) -> None:
    stranger = gate.session(gate.pki.client("front-proxy-client", by=gate.pki.users))
    with pytest.raises((aiohttp.ClientError, OSError)):
        await refused(stranger, GUARDED[0])


async def test_server_certificate_of_front_proxy_ca_fails_handshake(gate: World) -> None:
    key = tls.new_key()
    wanted = tls.Names(dns=("front-proxy-client",))
    issued = tls.issue(gate.pki.proxy, tls.public_key(key), wanted, client=False, now=time.time(), seconds=60)
    with pytest.raises((aiohttp.ClientError, OSError)):
        await refused(gate.session(tls.KeyPair(issued, key)), GUARDED[0])


async def test_gateway_certificate_is_not_accepted_as_front_proxy(gate: World) -> None:
    identity = gate.certificates.client
    assert identity is not None
    with pytest.raises((aiohttp.ClientError, OSError)):
        await refused(gate.session(tls.KeyPair(identity.certificate, identity.key)), GUARDED[0])


async def test_missing_user_header_returns_401(gate: World) -> None:
    async with gate.proxy.get(GUARDED[2]) as response:
        assert response.status == 401


async def test_user_groups_and_extra_reach_the_review(gate: World) -> None:
    headers = [
        ("X-Remote-User", "alice"),
        ("X-Remote-Group", "devs"),
        ("X-Remote-Group", "system:authenticated"),
        ("X-Remote-Uid", "42"),
        ("X-Remote-Extra-Acme.com%2fProject", "blue"),
    ]
    async with gate.proxy.get(f"{ROOT}/virtualmachines/web/expand-spec", headers=headers) as response:
        assert response.status == 200
    (review,) = gate.api.reviews
    assert review["user"] == "alice"
    assert review["uid"] == "42"
    assert review["groups"] == ["devs", "system:authenticated"]
    assert review["extra"] == {"acme.com/project": ["blue"]}


async def test_too_many_groups_are_refused(gate: World) -> None:
    code, body = await gate.ask("GET", "virtualmachines/web/expand-spec", groups=tuple("abcdefgh" * (LIMIT // 8 + 1)))
    # Refused by the header limit of the HTTP server or by LIMIT, without a review.
    assert code in (400, 401), body
    assert gate.api.reviews == []


async def test_replaced_front_proxy_ca_takes_effect(gate: World) -> None:
    new = tls.authority("front-proxy-ca-2", time.time() - 60, 3600)
    gate.api.put("configmaps", gate.pki.config_map(**{"requestheader-client-ca-file": new.certificate.decode()}))
    await until(lambda: gate.services.front_proxy.settings.authorities == new.certificate.decode())
    async with gate.session(gate.pki.client("front-proxy-client", by=new)).get(
        f"{ROOT}/virtualmachines/web/expand-spec", headers=ADMIN
    ) as response:
        assert response.status == 200
    with pytest.raises((aiohttp.ClientError, OSError)):
        await refused(gate.session(gate.pki.client("front-proxy-client")), GUARDED[2])


async def test_missing_config_map_returns_503_with_reason(gate: World) -> None:
    gate.api.remove("configmaps", "extension-apiserver-authentication", "kube-system")
    await until(lambda: gate.services.front_proxy.trouble())
    code, body = await gate.ask("GET", "virtualmachines/web/expand-spec")
    assert code == 503
    assert "extension-apiserver-authentication" in body["message"]


# ---- the settings ---------------------------------------------------------------------------------------------------


def test_empty_allowed_names_require_separate_client_ca() -> None:
    pki = Pki()
    apart = settings_of(pki.config_map(**{"requestheader-allowed-names": "[]"})["data"])
    assert apart.refusal == ""
    same = pki.proxy.certificate.decode()
    shared = settings_of(pki.config_map(**{"requestheader-allowed-names": "", "client-ca-file": same})["data"])
    assert "requestheader-allowed-names" in shared.refusal
    named = settings_of(pki.config_map(**{"client-ca-file": same})["data"])
    assert named.refusal == ""


@pytest.mark.parametrize(
    "change",
    [
        {"requestheader-client-ca-file": ""},
        {"requestheader-client-ca-file": "nonsense"},
        {"requestheader-allowed-names": "not json"},
        {"requestheader-allowed-names": '{"a": 1}'},
        {"requestheader-username-headers": "[1]"},
    ],
)
def test_invalid_front_proxy_settings_refuse_all_requests(change: dict[str, str]) -> None:
    assert settings_of(Pki().config_map(**change)["data"]).refusal


def test_header_names_come_from_the_config_map() -> None:
    found = settings_of(Pki().config_map(**{"requestheader-username-headers": '["X-Who", "X-Remote-User"]'})["data"])
    assert found.user_headers == ("X-Who", "X-Remote-User")
