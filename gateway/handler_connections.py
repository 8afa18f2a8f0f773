"""gRPC connections to the handlers: one per node, over mTLS.

A handler is found by its pod (label `kubevirt.io=virt-handler`, in the gateway's namespace, by `spec.nodeName`), and
must present a certificate for `<node name>.node.hyperlet`: a labelled pod without it, or another node's handler, is
rejected.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio

from api import names, ports
from api.k8s.objects import Pod
from gateway.http import status
from gateway.http.status import StatusError
from gateway.pki.certificates import Certificates
from kit import log
from kit.cache import Store
from kit.kube import Kube
from kit.tasks import BackgroundTasks
from kit.tls import TlsIdentity
from protos import limits
from protos import node_pb2_grpc as services

CALL_SECONDS = 50.0
"""Timeout of a call: a freeze waits for the guest to flush. The handler's own timeout is 45 s."""

T = TypeVar("T")
Stub = services.NodeStub
_log = log.logger(component="nodes")


def refused(error: grpc.aio.AioRpcError, node: str, kind: str, name: str) -> StatusError:
    """Maps a handler's gRPC error to an HTTP Status. The untrusted details are truncated."""
    words = status.readable(error.details() or "no reason given")
    match error.code():
        case grpc.StatusCode.NOT_FOUND:
            return StatusError(404, "NotFound", words, {"name": name, "group": names.GROUP, "kind": kind.lower()})
        case grpc.StatusCode.FAILED_PRECONDITION | grpc.StatusCode.ABORTED | grpc.StatusCode.ALREADY_EXISTS:
            return status.conflict(kind, name, words)
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return status.bad_request(words)
        case grpc.StatusCode.UNIMPLEMENTED:
            return status.not_implemented(f"the handler of node {node} does not support this operation: {words}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return status.too_many(words)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return status.unavailable(f"The handler of node {node} is unreachable: {words}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return StatusError(504, "Timeout", f"The handler of node {node} did not answer in time: {words}")
        case _:
            return status.internal(f"node {node}: {words}")


class _HandlerConnection:
    """A channel, its parameters, and its reference count."""

    def __init__(self, made_for: tuple[str, TlsIdentity], channel: grpc.aio.Channel) -> None:
        self.made_for = made_for
        self.channel = channel
        self.users = 0
        self.retired = False


class HandlerConnections:
    """Discovers handlers and pools connections. Call `start`, and `close` at the end."""

    def __init__(self, kube: Kube, namespace: str, certificates: Certificates, port: int = ports.HANDLER) -> None:
        labels = {names.LABEL_APP: names.APP_HANDLER}
        self._pods = Store(kube, Pod, labels=labels, namespace=namespace)
        self._pods.index("node", lambda pod: [pod.spec.nodeName] if pod.spec.nodeName else [])
        self._certificates = certificates
        self._port = port
        self._links: dict[str, _HandlerConnection] = {}
        self._closing = BackgroundTasks(log.task_failed)

    def start(self) -> None:
        """Starts watching the handler pods."""
        self._pods.start()

    def trouble(self) -> str | None:
        """Why no node can be reached, for the readiness check; None when ready."""
        return None if self._pods.is_synced else "the handler pods are not synced yet"

    async def close(self) -> None:
        """Closes all connections."""
        await self._pods.stop()
        for node, link in self._links.items():
            self._closing.start("close-channel", link.channel.close(), node=node)
        self._links.clear()
        await self._closing.finish()

    @contextlib.asynccontextmanager
    async def stub(self, node: str) -> AsyncIterator[Stub]:
        """A client of the node's handler for one exchange. Raises StatusError (503) when there is none."""
        link = self._link(node)
        link.users += 1
        try:
            yield services.NodeStub(link.channel)
        finally:
            link.users -= 1
            self._sweep(node, link)

    async def call(self, node: str, kind: str, name: str, ask: Callable[[Stub], Awaitable[T]]) -> T:
        """Calls a node about the object `kind` `name` and returns the response. Raises StatusError."""
        async with self.stub(node) as stub:
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    return await ask(stub)
            except grpc.aio.AioRpcError as error:
                raise refused(error, node, kind, name) from error
            except TimeoutError:
                raise StatusError(504, "Timeout", f"The handler of node {node} did not answer in time") from None

    def _link(self, node: str) -> _HandlerConnection:
        address, identity = self._address(node), self._certificates.client
        if identity is None:
            raise status.unavailable("The gateway has no client certificate for the handlers yet: try again")
        link = self._links.get(node)
        if link is None or link.made_for != (address, identity):
            if link is not None:
                link.retired = True
                self._sweep(node, link)
            link = self._links[node] = _HandlerConnection((address, identity), _channel(node, address, identity))
        return link

    def _address(self, node: str) -> str:
        """Address of the node's handler pod; a ready pod is preferred, for instance during a rollout."""
        found = [pod for pod in self._pods.by("node", node) if pod.status.podIP and not pod.metadata.deletionTimestamp]
        found.sort(key=_is_ready, reverse=True)
        if not found:
            raise status.unavailable(f"Node {node} has no running handler: the VirtualMachineInstance is unreachable")
        address = found[0].status.podIP
        return f"[{address}]:{self._port}" if address and ":" in address else f"{address}:{self._port}"

    def _sweep(self, node: str, link: _HandlerConnection) -> None:
        if link.retired and not link.users:
            self._closing.start("close-channel", link.channel.close(), node=node)


def _is_ready(pod: Pod) -> bool:
    return any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions or ())


def _channel(node: str, address: str, identity: TlsIdentity) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        root_certificates=identity.roots, private_key=identity.key, certificate_chain=identity.certificate
    )
    return grpc.aio.secure_channel(
        address,
        credentials,
        options=[
            # Verify the certificate against the node's name, not the address.
            ("grpc.ssl_target_name_override", names.node_dns_name(node)),
            ("grpc.max_receive_message_length", limits.MESSAGE_BYTES),
            ("grpc.max_send_message_length", limits.MESSAGE_BYTES),
            ("grpc.max_metadata_size", 16384),
            # Fixed flow control windows: a slow viewer buffers 64 KiB, not megabytes.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 2000),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # Detects a lost node on idle consoles.
            ("grpc.keepalive_time_ms", 30000),
            ("grpc.keepalive_timeout_ms", 20000),
            ("grpc.http2.max_pings_without_data", 0),
        ],
    )
