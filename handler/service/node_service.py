"""The Node service of protos/node.proto: the gateway's calls to the VMs of this node.

The gateway authorizes the user; this service verifies that the client is the gateway and that the VM is the requested
one. Launchers are untrusted: their responses are validated. Memory per stream is bounded to one message per direction
plus gRPC's window.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from api import names
from api.errors import HyperletError, LauncherUnavailable, NotFound
from handler.launchers.connection import LauncherConnection
from handler.launchers.reports import text
from handler.service import guest_answers as answers
from handler.service.limits import Busy, CallLimits
from kit import log
from kit.duplex import TAKEN
from kit.tasks import until_one_ends
from protos import launcher_pb2 as pb
from protos import launcher_pb2_grpc as services
from protos import limits, node_pb2, node_pb2_grpc

VERB_SECONDS = 45.0
"""Timeout of the launcher's response: a freeze takes as long as the guest needs to flush."""
FIRST_SECONDS = 10.0
CLOSE_SECONDS = 1.0
_NO_TEXT = "the launcher gave no reason"
# Others are gRPC's own, or must not come from a launcher.
_PASSED_ON = frozenset(
    grpc.StatusCode[name]
    for name in (
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "ALREADY_EXISTS",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "UNIMPLEMENTED",
    )
)
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES),
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16384),
    ("grpc.max_concurrent_streams", 2000),
    # Fixed windows, as in the connections to launchers.
    ("grpc.http2.bdp_probe", 0),
    # Detects a vanished gateway and closes its streams. The gateway uses keepalive in the same way.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
]

A = TypeVar("A")
R = TypeVar("R")
I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741
Context = grpc.aio.ServicerContext[Any, Any]
Find = Callable[[str, str, str], LauncherConnection]
"""The launcher of the VMI with this namespace, name and UID. Raises NotFound."""
_log = log.logger(component="node-service")


class Denied(HyperletError):
    """The client is not the gateway."""


class Closing(HyperletError):
    """This process is shutting down."""


class BadRequest(HyperletError):
    """The request violates the protocol."""


class NodeService(node_pb2_grpc.NodeServicer):
    """Forwards the gateway's calls to the VM's launcher."""

    def __init__(self, find: Find, limits: CallLimits | None = None) -> None:
        self._find = find
        self._limits = limits or CallLimits()
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams with UNAVAILABLE, so that the gateway can retry with the next handler."""
        self._closing.set()

    # ---- verbs -----------------------------------------------------------------------------------------------------

    async def Pause(self, request: node_pb2.Vmi, context: Context) -> node_pb2.Done:
        """See the .proto."""
        return await self._done(context, request, lambda stub: stub.Pause(pb.PauseRequest(), timeout=VERB_SECONDS))

    async def Unpause(self, request: node_pb2.Vmi, context: Context) -> node_pb2.Done:
        """See the .proto."""
        return await self._done(context, request, lambda stub: stub.Unpause(pb.UnpauseRequest(), timeout=VERB_SECONDS))

    async def Reset(self, request: node_pb2.Vmi, context: Context) -> node_pb2.Done:
        """See the .proto."""
        return await self._done(context, request, lambda stub: stub.Reset(pb.ResetRequest(), timeout=VERB_SECONDS))

    async def SoftReboot(self, request: node_pb2.Vmi, context: Context) -> node_pb2.Done:
        """See the .proto."""
        asked = pb.SoftRebootRequest()
        return await self._done(context, request, lambda stub: stub.SoftReboot(asked, timeout=VERB_SECONDS))

    async def Freeze(self, request: node_pb2.FreezeVmi, context: Context) -> node_pb2.Done:
        """See the .proto."""
        asked = pb.FreezeRequest(unfreeze_seconds=request.unfreeze_seconds)
        return await self._done(context, request.vmi, lambda stub: stub.Freeze(asked, timeout=VERB_SECONDS))

    async def Unfreeze(self, request: node_pb2.Vmi, context: Context) -> node_pb2.Done:
        """See the .proto."""
        asked = pb.UnfreezeRequest()
        return await self._done(context, request, lambda stub: stub.Unfreeze(asked, timeout=VERB_SECONDS))

    async def GuestInfo(self, request: node_pb2.Vmi, context: Context) -> pb.GuestInfo:
        """See the .proto."""
        async with self._answering(context):
            launcher = self._launcher(context, request)
            with self._limits.call(launcher.pod_uid):
                report = await launcher.report()
            if not report.agent_connected:
                await context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "no guest agent is connected: install and start it in the guest",
                )
            return answers.guest_info(report.guest)

    async def Users(self, request: node_pb2.Vmi, context: Context) -> pb.UsersReply:
        """See the .proto."""
        asked = pb.UsersRequest()
        return await self._ask(context, request, lambda stub: stub.Users(asked, timeout=VERB_SECONDS), answers.users)

    async def Filesystems(self, request: node_pb2.Vmi, context: Context) -> pb.FilesystemsReply:
        """See the .proto."""
        asked = pb.FilesystemsRequest()
        return await self._ask(
            context, request, lambda stub: stub.Filesystems(asked, timeout=VERB_SECONDS), answers.filesystems
        )

    async def Screenshot(self, request: node_pb2.Vmi, context: Context) -> pb.ScreenshotReply:
        """See the .proto."""
        asked = pb.ScreenshotRequest()
        return await self._ask(
            context, request, lambda stub: stub.Screenshot(asked, timeout=VERB_SECONDS), answers.screenshot
        )

    async def _done(
        self, context: Context, vmi: node_pb2.Vmi, ask: Callable[[services.LauncherStub], Awaitable[object]]
    ) -> node_pb2.Done:
        return await self._ask(context, vmi, ask, lambda _: node_pb2.Done())

    async def _ask(
        self,
        context: Context,
        vmi: node_pb2.Vmi,
        ask: Callable[[services.LauncherStub], Awaitable[R | None]],
        check: Callable[[R], A],
    ) -> A:
        async with self._answering(context):
            launcher = self._launcher(context, vmi)
            with self._limits.call(launcher.pod_uid):
                answer = await ask(launcher.stub)
            if answer is None:  # gRPC's result for an undecodable message
                raise answers.BadAnswer("the launcher's response cannot be decoded")
            return check(answer)

    # ---- streams ---------------------------------------------------------------------------------------------------

    async def Console(  # type: ignore[override]  # gRPC's reader/writer API, which the stub lacks
        self, requests: AsyncIterator[node_pb2.ConsoleInput], context: Context
    ) -> None:
        """See the .proto."""
        async with self._answering(context):
            first = await self._first(context, requests)
            launcher = self._launcher(context, first.vmi)
            with self._limits.stream(launcher.pod_uid, first.vmi.namespace):
                call = launcher.stub.Console()
                await self._relay(call, context, first.input, _inputs(requests), answers.console_output)

    async def Vnc(  # type: ignore[override]
        self, requests: AsyncIterator[node_pb2.VncInput], context: Context
    ) -> None:
        """See the .proto."""
        async with self._answering(context):
            first = await self._first(context, requests)
            launcher = self._launcher(context, first.vmi)
            with self._limits.stream(launcher.pod_uid, first.vmi.namespace):
                call = launcher.stub.Vnc()
                await self._relay(call, context, first.chunk, _chunks(requests), answers.chunk)

    async def _first(self, context: Context, requests: AsyncIterator[R]) -> R:
        check_peer(context)
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                return await anext(aiter(requests))
        except (TimeoutError, StopAsyncIteration):
            raise BadRequest("the first message, which names the VMI, was not received") from None

    async def _relay(
        self,
        call: grpc.aio.StreamStreamCall[I, O],
        context: Context,
        first: I,
        inputs: AsyncIterator[I],
        check: Callable[[O], O],
    ) -> None:
        """Forward messages in both directions until either side, or this process, ends the stream."""

        async def up() -> None:
            # When the launcher has ended the call, down() reports its status after all its messages.
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(first)
                async for message in inputs:
                    await call.write(message)
                await call.done_writing()
            await asyncio.Event().wait()

        async def down() -> None:
            # Before any message: a cancelled write would cancel the metadata too, and the status would fail.
            opened = TAKEN[0] in tuple(await call.initial_metadata())
            if opened:
                await context.send_initial_metadata(TAKEN)
            async for message in call:
                if not opened:
                    opened = True
                    await context.send_initial_metadata(())
                await context.write(check(message))

        async def closing() -> None:
            await self._closing.wait()
            raise Closing("the node's handler is restarting: reconnect")

        try:
            await until_one_ends(up(), down(), closing())
        finally:
            call.cancel()

    # ---- caller and target -----------------------------------------------------------------------------------------

    def _launcher(self, context: Context, vmi: node_pb2.Vmi) -> LauncherConnection:
        check_peer(context)
        if not (vmi.namespace and vmi.name and vmi.uid):
            raise BadRequest("the VMI's namespace, name and UID are required")
        return self._find(vmi.namespace, vmi.name, vmi.uid)

    @contextlib.asynccontextmanager
    async def _answering(self, context: Context) -> AsyncIterator[None]:
        """Translate exceptions into statuses."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            await _abort(context, error.code(), error.details())
        except HyperletError as error:
            await context.abort(_code(error), text(error.message, limits.REASON_BYTES))
        except answers.BadAnswer as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the launcher did not answer in time")


def check_peer(context: Context) -> None:
    """Raises Denied unless the client's verified certificate is the gateway's, with no other URI."""
    uris = context.auth_context().get("peer_uri") or ()
    if list(uris) != [names.URI_GATEWAY.encode()]:
        _log.warning("Refused a client that is not the gateway", peer=context.peer(), uris=[*map(repr, uris)][:4])
        raise Denied("only the gateway may call")


def _code(error: HyperletError) -> grpc.StatusCode:
    match error:
        case Denied():
            return grpc.StatusCode.PERMISSION_DENIED
        case NotFound():
            return grpc.StatusCode.NOT_FOUND
        case Busy():
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        case BadRequest():
            return grpc.StatusCode.INVALID_ARGUMENT
        case LauncherUnavailable() | Closing():
            return grpc.StatusCode.UNAVAILABLE
    return grpc.StatusCode.INTERNAL


async def _abort(context: Context, code: grpc.StatusCode, details: str | None) -> NoReturn:
    """End a call with the launcher's status and its sanitized message."""
    if code is grpc.StatusCode.CANCELLED:
        code = grpc.StatusCode.UNAVAILABLE
    code = code if code in _PASSED_ON else grpc.StatusCode.INTERNAL
    await context.abort(code, text(details or "", limits.REASON_BYTES) or _NO_TEXT)
    raise AssertionError("abort() raises")


async def _inputs(requests: AsyncIterator[node_pb2.ConsoleInput]) -> AsyncIterator[pb.ConsoleInput]:
    async for request in requests:
        yield pb.ConsoleInput(data=_bounded(request.input.data))


async def _chunks(requests: AsyncIterator[node_pb2.VncInput]) -> AsyncIterator[pb.Chunk]:
    async for request in requests:
        yield pb.Chunk(data=_bounded(request.chunk.data))


def _bounded(data: bytes) -> bytes:
    if len(data) > limits.CHUNK_BYTES:
        raise BadRequest(f"message larger than {limits.CHUNK_BYTES >> 10} KiB")
    return data


@contextlib.asynccontextmanager
async def serving(service: NodeService, credentials: grpc.ServerCredentials, address: str) -> AsyncIterator[int]:
    """Serve on `address` (host:port) inside the block; yields the port."""
    server = grpc.aio.server(options=OPTIONS)
    node_pb2_grpc.add_NodeServicer_to_server(service, server)
    port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield port
    finally:
        service.close()
        await server.stop(CLOSE_SECONDS)
