"""A complete gateway: TLS on loopback, a fake API server behind it, and a node over mTLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
from aiohttp import web

from api import names
from gateway.context import Gateway
from gateway.http.server import application
from gateway.pki import authorities
from gateway.pki.authorities import INTERNAL, SERVING, Lifetimes
from gateway.pki.certificates import Certificates
from gateway.subresources import dispatch
from gateway.subresources.request import Services
from kit import tls
from kit.duplex import TAKEN
from kit.kube import Kube
from kit.tls import Names, TlsIdentity
from protos import launcher_pb2 as pb
from protos import node_pb2, node_pb2_grpc
from tests.fakes.apiserver import FakeApi, Json
from tests.waiting import until

NODE = "node-1"
ROOT = "/apis/subresources.kubevirt.io/v1/namespaces/default"
VMI_UID, VM_UID, POD_UID = "vmi-uid", "vm-uid", "pod-uid"
LONG = 3600.0


class ReviewingApi(FakeApi):
    """Also answers SubjectAccessReviews: `may` decides on user, verb and full resource."""

    def __init__(self) -> None:
        super().__init__()
        self.may: Callable[[str, str, str], bool] = lambda user, verb, resource: True
        self.reviews: list[Json] = []
        self.answers["subjectaccessreviews"] = self._review

    def _review(self, body: Json) -> Json:
        spec = body["spec"]
        self.reviews.append(spec)
        wanted = spec["resourceAttributes"]
        full = "/".join(filter(None, (wanted["resource"], wanted["subresource"])))
        allowed = self.may(spec["user"], wanted["verb"], full)
        return {**body, "status": {"allowed": allowed, "reason": "" if allowed else "no role says so"}}


# ---- certificates ---------------------------------------------------------------------------------------------------


@dataclass
class Pki:
    """The authorities of a cluster."""

    proxy: tls.KeyPair = field(default_factory=lambda: tls.authority("front-proxy-ca", time.time() - 60, LONG))
    users: tls.KeyPair = field(default_factory=lambda: tls.authority("client-ca", time.time() - 60, LONG))
    lives: Lifetimes = field(default_factory=lambda: Lifetimes(10 * LONG, LONG))

    def __post_init__(self) -> None:
        now = time.time() - 60
        self.authorities = {each: [authorities.make(each, now, self.lives)] for each in (SERVING, INTERNAL)}

    def client(self, common: str, by: tls.KeyPair | None = None) -> tls.KeyPair:
        """A client certificate with the common name."""
        key = tls.new_key()
        wanted = Names(dns=(common,))
        issued = tls.issue(by or self.proxy, tls.public_key(key), wanted, client=True, now=time.time(), seconds=LONG)
        return tls.KeyPair(issued, key)

    def node(self, name: str, by: tls.KeyPair | None = None) -> TlsIdentity:
        """A handler's certificate."""
        key = tls.new_key()
        wanted = Names(dns=(names.node_dns_name(name),), uris=(names.node_uri(name),))
        ca = by or self.authorities[INTERNAL][0].pair
        issued = tls.issue(ca, tls.public_key(key), wanted, client=False, now=time.time(), seconds=LONG)
        return TlsIdentity(issued, key, self.authorities[INTERNAL][0].pair.certificate)

    def certificates(self) -> Certificates:
        """The gateway's."""
        found = Certificates("hyperlet", self.lives)
        found.update(self.authorities)
        return found

    def config_map(self, **data: str) -> Json:
        """extension-apiserver-authentication."""
        standard = {
            "client-ca-file": self.users.certificate.decode(),
            "requestheader-client-ca-file": self.proxy.certificate.decode(),
            "requestheader-allowed-names": '["front-proxy-client"]',
            "requestheader-username-headers": '["X-Remote-User"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
            "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
        }
        meta = {"name": "extension-apiserver-authentication", "namespace": "kube-system"}
        whole = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {**standard, **data}}
        whole["data"] = {key: value for key, value in whole["data"].items() if value}  # type: ignore[attr-defined]
        return whole

    def context(self, client: tls.KeyPair | None) -> ssl.SSLContext:
        """A client's TLS context, with or without a certificate."""
        context = tls.client_context(self.authorities[SERVING][0].pair.certificate)
        context.check_hostname = False
        if client is not None:
            tls._load(context, client)
        return context


# ---- the node -------------------------------------------------------------------------------------------------------


class Node(node_pb2_grpc.NodeServicer):
    """A handler that answers verbs and echoes consoles. `fails` is the status of the next calls."""

    def __init__(self) -> None:
        self.called: Counter[str] = Counter()
        self.fails: tuple[grpc.StatusCode, str] | None = None
        self.firsts: list[Any] = []
        self.prints: list[pb.ConsoleOutput] = []
        self.png = b"\x89PNG\r\n\x1a\nscreen"
        self.frozen_for = 0
        self.flood = 0
        self.sent = 0
        self.open = 0
        self.hang = asyncio.Event()
        self.end = asyncio.Event()

    async def _verb(self, name: str, context: Any) -> None:
        self.called[name] += 1
        if self.fails:
            await context.abort(*self.fails)

    async def Pause(self, request: Any, context: Any) -> Any:
        await self._verb("Pause", context)
        assert (request.namespace, request.name, request.uid) == ("default", "web", VMI_UID)
        return node_pb2.Done()

    async def Unpause(self, request: Any, context: Any) -> Any:
        await self._verb("Unpause", context)
        return node_pb2.Done()

    async def Reset(self, request: Any, context: Any) -> Any:
        await self._verb("Reset", context)
        return node_pb2.Done()

    async def SoftReboot(self, request: Any, context: Any) -> Any:
        await self._verb("SoftReboot", context)
        return node_pb2.Done()

    async def Freeze(self, request: Any, context: Any) -> Any:
        await self._verb("Freeze", context)
        self.frozen_for = request.unfreeze_seconds
        return node_pb2.Done()

    async def Unfreeze(self, request: Any, context: Any) -> Any:
        await self._verb("Unfreeze", context)
        return node_pb2.Done()

    async def GuestInfo(self, request: Any, context: Any) -> Any:
        await self._verb("GuestInfo", context)
        return pb.GuestInfo(
            agent_version="8.2", hostname="web", timezone="UTC, 0", os=pb.OsInfo(name="Tiny", id="tiny")
        )

    async def Users(self, request: Any, context: Any) -> Any:
        await self._verb("Users", context)
        return pb.UsersReply(users=[pb.GuestUser(name="alice", login_time=1.5)])

    async def Filesystems(self, request: Any, context: Any) -> Any:
        await self._verb("Filesystems", context)
        disk = pb.GuestDisk(bus="virtio", serial="abc")
        one = pb.GuestFilesystem(
            name="vda1", mount_point="/", type="ext4", used_bytes=5, total_bytes=1 << 40, disks=[disk]
        )
        return pb.FilesystemsReply(filesystems=[one])

    async def Screenshot(self, request: Any, context: Any) -> Any:
        await self._verb("Screenshot", context)
        return pb.ScreenshotReply(png=self.png)

    async def Console(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.firsts.append(await anext(aiter(requests)))
        await self._verb("Console", context)
        await context.send_initial_metadata(TAKEN)
        self.open += 1
        try:
            for each in self.prints:
                yield each
            while self.flood:
                self.flood -= 1
                yield pb.ConsoleOutput(data=bytes(64 << 10))
                self.sent += 1
            ended = asyncio.ensure_future(self.end.wait())
            while True:
                typed = asyncio.ensure_future(anext(aiter(requests), None))
                done, _ = await asyncio.wait({typed, ended}, return_when=asyncio.FIRST_COMPLETED)
                if typed not in done:
                    typed.cancel()
                    if self.fails:
                        await context.abort(*self.fails)
                    return
                message = typed.result()
                if message is None:
                    return
                yield pb.ConsoleOutput(data=message.input.data)
        finally:
            self.open -= 1

    async def Vnc(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.firsts.append(await anext(aiter(requests)))
        await self._verb("Vnc", context)
        await context.send_initial_metadata(TAKEN)
        yield pb.Chunk(data=b"RFB 003.008\n")
        async for message in requests:
            yield pb.Chunk(data=message.chunk.data)


async def serve_node(node: Node, identity: TlsIdentity, port: int = 0) -> tuple[grpc.aio.Server, int]:
    """Serves the node over mTLS; returns its port."""
    server = grpc.aio.server()
    node_pb2_grpc.add_NodeServicer_to_server(node, server)  # type: ignore[no-untyped-call]
    credentials = grpc.ssl_server_credentials(
        [(identity.key, identity.certificate)], root_certificates=identity.roots, require_client_auth=True
    )
    found = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    return server, found


# ---- objects --------------------------------------------------------------------------------------------------------


def handler_pod(node: str = NODE, address: str = "127.0.0.1", name: str = "virt-handler-1") -> Json:
    labels = {"kubevirt.io": "virt-handler"}
    return {
        "metadata": {"name": name, "namespace": "hyperlet", "labels": labels},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def vm(strategy: str = "Manual", *, spec: Json | None = None, **status: Any) -> Json:
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "web", "namespace": "default", "uid": VM_UID},
        "spec": {"runStrategy": strategy, "template": {"spec": {"domain": {"devices": {}}}}, **(spec or {})},
        "status": status,
    }


def vmi(phase: str = "Running", *, conditions: tuple[str, ...] = (), spec: Json | None = None, **status: Any) -> Json:
    owner = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "name": "web",
        "uid": VM_UID,
        "controller": True,
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": "web", "namespace": "default", "uid": VMI_UID, "ownerReferences": [owner]},
        "spec": {"domain": {"devices": {}}, "terminationGracePeriodSeconds": 30, **(spec or {})},
        "status": {
            "phase": phase,
            "nodeName": NODE,
            "activePods": {POD_UID: NODE},
            "conditions": [{"type": kind, "status": "True"} for kind in conditions],
            **status,
        },
    }


# ---- the gateway ----------------------------------------------------------------------------------------------------


class World:
    """A running gateway and its peers."""

    def __init__(self, api: ReviewingApi, pki: Pki, node: Node, port: int) -> None:
        self.api = api
        self.pki = pki
        self.node = node
        self.port = port
        self.services: Services
        self.runner: web.AppRunner
        self.certificates: Certificates
        self._sessions: list[aiohttp.ClientSession] = []
        self.proxy = self.session(pki.client("front-proxy-client"))

    def session(self, client: tls.KeyPair | None) -> aiohttp.ClientSession:
        """A client with or without a certificate."""
        connector = aiohttp.TCPConnector(ssl=self.pki.context(client))
        made = aiohttp.ClientSession(f"https://127.0.0.1:{self.port}", connector=connector)
        self._sessions.append(made)
        return made

    async def ask(
        self, method: str, path: str, *, user: str = "alice", body: Any = None, groups: tuple[str, ...] = ("devs",)
    ) -> tuple[int, Any]:
        """Sends a request through the front proxy; returns code and JSON (or bytes)."""
        path = path if path.startswith("/") else f"{ROOT}/{path}"
        headers = [("X-Remote-User", user), *(("X-Remote-Group", each) for each in groups)]
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
        async with self.proxy.request(method, path, headers=headers, data=data) as response:
            raw = await response.read()
            if response.content_type == "application/json" and raw:
                return response.status, json.loads(raw)
            return response.status, raw

    def stream(self, path: str, user: str = "alice", **more: Any) -> Any:
        """Opens a WebSocket through the front proxy."""
        path = path if path.startswith("/") else f"{ROOT}/{path}"
        headers = {"X-Remote-User": user, "X-Remote-Group": "devs"}
        patience = aiohttp.ClientWSTimeout(ws_receive=10, ws_close=10)
        return self.proxy.ws_connect(path, headers=headers, protocols=["plain.kubevirt.io"], timeout=patience, **more)

    async def close(self) -> None:
        for session in self._sessions:
            await session.close()


@contextlib.asynccontextmanager
async def world(folder: Path, pki: Pki | None = None) -> AsyncIterator[World]:
    """A running gateway with a reachable node."""
    pki = pki or Pki()
    async with ReviewingApi() as api, Kube.connect("test", api.kubeconfig(folder)) as kube:
        api.put("configmaps", pki.config_map())
        api.put("pods", handler_pod())
        node = Node()
        server, node_port = await serve_node(node, pki.node(NODE))
        certificates = pki.certificates()
        app = application(Gateway(kube, "hyperlet", certificates), (dispatch.routes,))
        services = app[dispatch.SERVICES]
        services.nodes._port = node_port
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificates.server)
        await site.start()
        found = World(api, pki, node, runner.addresses[0][1])
        found.services, found.runner, found.certificates = services, runner, certificates
        try:
            await until(lambda: dispatch.trouble(app) is None)
            yield found
        finally:
            await found.close()
            await runner.cleanup()
            await server.stop(None)
