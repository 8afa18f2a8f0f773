"""A node's service over real mTLS on loopback, and certificates of every kind that may come along."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from api import names
from handler.service import node_service
from handler.service.limits import CallLimits
from kit import tls
from kit.tls import KeyPair, Names, TlsIdentity
from protos import node_pb2, node_pb2_grpc

NODE = "node1"
VMI = node_pb2.Vmi(namespace="ns", name="vm", uid="uid-1")


def leaf(
    ca: KeyPair, client: bool, *, dns: tuple[str, ...] = (), uris: tuple[str, ...] = (), age: float = 0
) -> TlsIdentity:
    """A key and certificate signed by this CA, with its root. `age` in seconds."""
    key, now = tls.new_key(), time.time() - age
    signed = tls.issue(ca, tls.public_key(key), Names(dns, uris), client=client, now=now, seconds=3600)
    return TlsIdentity(signed, key, ca.certificate)


class Authority:
    """The internal CA and the certificates it has signed."""

    def __init__(self) -> None:
        self.ca = tls.authority("internal", time.time(), 7200)

    def gateway(self) -> TlsIdentity:
        return leaf(self.ca, True, uris=(names.URI_GATEWAY,))

    def node(self, name: str = NODE) -> TlsIdentity:
        return leaf(self.ca, False, dns=(names.node_dns_name(name),), uris=(names.node_uri(name),))


class Direct:
    """Fake LauncherConnection with a known socket."""

    def __init__(self, stub: Any, report: Callable[[], Any] | None = None, pod_uid: str = "pod-1") -> None:
        self.stub = stub
        self.pod_uid = pod_uid
        self._report = report

    async def report(self) -> Any:
        assert self._report is not None
        return self._report()


def server_credentials(identity: TlsIdentity) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(identity.key, identity.certificate)], root_certificates=identity.roots, require_client_auth=True
    )


def channel(port: int, identity: TlsIdentity | None, roots: bytes, node: str = NODE) -> grpc.aio.Channel:
    """A channel as the gateway opens it; without an identity, no client certificate."""
    credentials = grpc.ssl_channel_credentials(
        roots, identity.key if identity else None, identity.certificate if identity else None
    )
    options = [
        ("grpc.ssl_target_name_override", names.node_dns_name(node)),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


@contextlib.asynccontextmanager
async def node(
    find: node_service.Find, authority: Authority, limits: CallLimits | None = None
) -> AsyncIterator[tuple[node_service.NodeService, int]]:
    """A node's service and its port."""
    service = node_service.NodeService(find, limits)
    credentials = server_credentials(authority.node())
    async with node_service.serving(service, credentials, "127.0.0.1:0") as port:
        yield service, port


@contextlib.asynccontextmanager
async def gateway(port: int, authority: Authority) -> AsyncIterator[Any]:
    """The gateway's client."""
    async with channel(port, authority.gateway(), authority.ca.certificate) as connection:
        yield node_pb2_grpc.NodeStub(connection)
