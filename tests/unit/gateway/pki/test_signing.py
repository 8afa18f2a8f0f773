"""Signing of handler certificates for their own node, and the role of each certificate."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from aiohttp import web

from api import names
from api.errors import ApiUnavailable
from gateway.context import Gateway
from gateway.http.server import application
from gateway.pki import signing
from gateway.pki.authorities import INTERNAL, SERVING
from handler.node.certificate import NodeCertificate
from kit import tls
from kit.kube import Kube
from kit.tls import TlsIdentity
from protos import node_pb2, node_pb2_grpc
from tests.fakes.apiserver import Json
from tests.unit.gateway.lab import Node, Pki, ReviewingApi
from tests.waiting import until

ACCOUNT = "system:serviceaccount:hyperlet:hyperlet-handler"


class TokenApi(ReviewingApi):
    """Answers TokenReviews from a map of tokens; the requested audiences must match the token's."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Json] = {}
        self.answers["tokenreviews"] = self._token_review

    def _token_review(self, body: Json) -> Json:
        status = self.known.get(body["spec"]["token"], {"authenticated": False, "error": "token expired"})
        asked = set(body["spec"]["audiences"])
        if status["authenticated"] and not asked & set(status.get("audiences", asked)):
            status = {"authenticated": False, "error": "the token audiences do not match"}
        return {**body, "status": status}


def token(pod: str = "handler-1", uid: str = "uid-1", *, account: str = ACCOUNT, audience: str = "hyperlet") -> Json:
    extra = {signing.POD_NAME: [pod], signing.POD_UID: [uid]}
    return {"authenticated": True, "audiences": [audience], "user": {"username": account, "extra": extra}}


def pod(name: str, node: str, *, account: str = "hyperlet-handler", uid: str = "uid-1") -> Json:
    meta = {"name": name, "namespace": "hyperlet", "uid": uid}
    return {"metadata": meta, "spec": {"nodeName": node, "serviceAccountName": account}}


class Signer:
    """A signing gateway and its peers."""

    def __init__(self, api: TokenApi, pki: Pki, kube: Kube, folder: Path) -> None:
        self.api = api
        self.pki = pki
        self.kube = kube
        self.folder = folder
        self.port = 0
        self.certificates = pki.certificates()

    def handler(self, node: str, text: str = "right") -> NodeCertificate:
        path = self.folder / f"token-{text}"
        path.write_text(text + "\n")
        made = NodeCertificate(self.kube, node, path, port=self.port)
        made._kube._where = self._in_hyperlet()
        return made

    def _in_hyperlet(self) -> Any:
        return dataclasses.replace(self.kube._where, namespace="hyperlet")


@pytest.fixture
async def signer(tmp_path: Path) -> AsyncIterator[Signer]:
    pki = Pki()
    async with TokenApi() as api, Kube.connect("test", api.kubeconfig(tmp_path)) as kube:
        found = Signer(api, pki, kube, tmp_path)
        app = application(Gateway(kube, "hyperlet", found.certificates), (signing.routes,))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=found.certificates.server).start()
        found.port = runner.addresses[0][1]
        bundle = {"serving.crt": found.certificates.bundle(SERVING).decode()}
        api.put("configmaps", {"metadata": {"name": "hyperlet-ca", "namespace": "hyperlet"}, "data": bundle})
        service = {"name": "hyperlet-gateway", "namespace": "hyperlet"}
        api.put("services", {"metadata": service, "spec": {"clusterIP": "127.0.0.1"}})
        api.put("pods", pod("handler-1", "node-1"))
        api.known["right"] = token()
        yield found
        await runner.cleanup()


async def test_a_handler_gets_a_certificate_for_its_node(signer: Signer) -> None:
    identity = await signer.handler("node-1").obtain()
    assert tls.uris(identity.certificate) == ["hyperlet://node/node-1"]
    assert identity.roots == signer.certificates.bundle(INTERNAL)
    tls.check_pair(tls.KeyPair(identity.certificate, identity.key))


async def test_names_in_signing_request_are_ignored(signer: Signer) -> None:
    """A request for another node's or the gateway's name gets the handler's own node name."""
    for wish in ("node-2", "gateway", "hyperlet://gateway"):
        signed = await signer.handler(wish)._asked(
            "127.0.0.1", signer.certificates.bundle(SERVING), tls.request(tls.new_key(), wish)
        )
        assert tls.uris(signed.certificate.encode()) == ["hyperlet://node/node-1"]
        with pytest.raises(ApiUnavailable, match=r"signed for \['hyperlet://node/node-1'\]"):
            await signer.handler(wish).obtain()


REFUSED: dict[str, tuple[Json | None, str]] = {
    "other-account": (
        token(account="system:serviceaccount:hyperlet:hyperlet-controller"),
        "403.*is not system",
    ),
    "account-elsewhere": (
        token(account="system:serviceaccount:default:hyperlet-handler"),
        "403.*is not system",
    ),
    "a-person": (token(account="alice"), "403.*alice is not"),
    "other-pod": (token("handler-2"), "403.*handler-2 does not exist"),
    "pod-of-that-name-before": (token(uid="uid-0"), "403.*another pod has its name"),
    "other-pods-account": (token("intruder", "uid-3"), "403.*intruder is not a handler"),
    "not-yet-on-a-node": (token("waiting", "uid-4"), "403.*waiting is not a handler on a node"),
    "wrong-audience": (token(audience="https://kubernetes.default.svc"), "403.*audience hyperlet"),
    "not-bound": ({**token(), "user": {"username": ACCOUNT, "extra": {}}}, "403.*not bound to a pod"),
    "expired": (None, "403.*not valid"),
    "expired-though-it-was-ours": ({**token(), "authenticated": False}, "403.*not valid"),
    "server-that-knows-no-audiences": (
        {key: value for key, value in token().items() if key != "audiences"},
        "403.*audience hyperlet",
    ),
}


@pytest.mark.parametrize("which", REFUSED)
async def test_other_tokens_are_refused(signer: Signer, which: str) -> None:
    signer.api.put("pods", pod("intruder", "node-1", account="default", uid="uid-3"))
    signer.api.put("pods", pod("waiting", "", uid="uid-4"))
    status, words = REFUSED[which]
    if status is not None:
        signer.api.known[which] = status
    with pytest.raises(ApiUnavailable, match=words):
        await signer.handler("node-1", which).obtain()


async def ask(signer: Signer, body: bytes | None, headers: dict[str, str]) -> tuple[int, Json]:
    connector = aiohttp.TCPConnector(ssl=signer.pki.context(None))
    async with aiohttp.ClientSession(connector=connector) as session:
        url = f"https://127.0.0.1:{signer.port}/sign"
        async with session.post(url, data=body, headers=headers) as response:
            return response.status, await response.json()


@pytest.mark.parametrize(
    "body, headers, code",
    [
        (b"x", {}, 401),
        (b"x", {"Authorization": "Basic eDp5"}, 401),
        (b"x", {"Authorization": "Bearer "}, 401),
        (b"", {"Authorization": "Bearer right"}, 413),
        (b"x" * (signing.REQUEST_LIMIT + 1), {"Authorization": "Bearer right"}, 413),
        (b"x", {"Authorization": "Bearer right"}, 400),
        (b"\xff" * 100, {"Authorization": "Bearer right"}, 400),
    ],
)
async def test_invalid_signing_request_is_refused(
    signer: Signer, body: bytes, headers: dict[str, str], code: int
) -> None:
    found, status = await ask(signer, body, headers)
    assert found == code and status["kind"] == "Status" and status["code"] == code and len(status["message"]) > 10


async def test_unavailable_api_server_returns_503_and_signs_nothing(signer: Signer) -> None:
    signer.api.away = True
    request = tls.request(tls.new_key(), "node-1")
    code, status = await ask(signer, request, {"Authorization": "Bearer right"})
    assert code == 503 and "try again" in status["message"]


# ---- roles of certificates


async def _half_sent(signer: Signer) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", signer.port, ssl=signer.pki.context(None))
    head = "POST /sign HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer right\r\nContent-Length: 500\r\n\r\nhalf"
    writer.write(head.encode())
    await writer.drain()
    return writer


async def test_incomplete_requests_do_not_block_signing(signer: Signer) -> None:
    open_ones = [await _half_sent(signer) for _ in range(2 * signing.PARALLEL)]
    await asyncio.sleep(0.2)
    identity = await signer.handler("node-1").obtain()
    assert tls.uris(identity.certificate) == ["hyperlet://node/node-1"]
    for writer in open_ones:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def serving(certificate: NodeCertificate) -> AsyncIterator[int]:
    """Starts a node's gRPC server with the certificate; returns its port."""
    server = grpc.aio.server()
    node_pb2_grpc.add_NodeServicer_to_server(Node(), server)  # type: ignore[no-untyped-call]
    port = server.add_secure_port("127.0.0.1:0", certificate.credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def call(port: int, identity: TlsIdentity | None, node: str, roots: bytes) -> None:
    """Raises grpc.aio.AioRpcError if the server or the client certificate is rejected."""
    credentials = grpc.ssl_channel_credentials(
        roots, identity.key if identity else None, identity.certificate if identity else None
    )
    options = [("grpc.ssl_target_name_override", names.node_dns_name(node)), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        await node_pb2_grpc.NodeStub(channel).GuestInfo(node_pb2.Vmi(), timeout=10)  # type: ignore[no-untyped-call]


async def test_gateway_and_node_trust_only_each_other(signer: Signer) -> None:
    certificate = signer.handler("node-1")
    certificate.identity = await certificate.obtain()
    gateway = signer.certificates.client
    assert gateway is not None
    stranger = Pki().certificates().client
    async with serving(certificate) as port:
        await call(port, gateway, "node-1", gateway.roots)
        for identity, node, why in (
            (None, "node-1", "without a certificate"),
            (certificate.identity, "node-1", "a node's certificate is no client's"),
            (stranger, "node-1", "a gateway of other authorities"),
            (gateway, "node-2", "a node that is not the one that was asked for"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call(port, identity, node, gateway.roots)
            assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE, why


async def test_gateway_client_certificate_cannot_serve(signer: Signer) -> None:
    """It cannot be used as a node's server certificate."""
    gateway = signer.certificates.client
    assert gateway is not None
    posing = signer.handler("node-1")
    posing.identity = gateway
    async with serving(posing) as port:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call(port, gateway, "node-1", gateway.roots)
        assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_server_presents_renewed_certificate(signer: Signer) -> None:
    certificate = signer.handler("node-1")
    certificate.identity = await certificate.obtain()
    gateway = signer.certificates.client
    assert gateway is not None
    other = Pki()
    async with serving(certificate) as port:
        await call(port, gateway, "node-1", gateway.roots)
        certificate.identity = other.node("node-1")
        successor = other.certificates().client
        assert successor is not None
        await call(port, successor, "node-1", successor.roots)
        with pytest.raises(grpc.aio.AioRpcError):
            await call(port, gateway, "node-1", successor.roots)


async def test_handler_retries_until_gateway_is_available(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.node.certificate.RETRY_SECONDS", (0.01, 0.01))
    del signer.api.known["right"]
    certificate = signer.handler("node-1")
    task = asyncio.create_task(certificate.run())
    await until(lambda: signer.api.calls["get", "services"] > 2)
    assert certificate.identity is None
    with pytest.raises(RuntimeError, match="no certificate yet"):
        certificate.credentials()
    signer.api.known["right"] = token()
    async with asyncio.timeout(10):
        await certificate.there()
    assert certificate.identity is not None
    task.cancel()
