"""The Launcher service of protos/launcher.proto: gRPC interface of `launcher.vm.controller.VmController`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc

from launcher.domain_builder.process import BuildError
from launcher.hypervisor.connection import HypervisorError, Unavailable
from launcher.log import log
from launcher.network.dhcp_service import DhcpError
from launcher.paths import Paths
from launcher.vm.controller import VmController
from launcher.vm.errors import OperationRefused
from protos import launcher_pb2 as pb
from protos import launcher_pb2_grpc, limits

if TYPE_CHECKING:
    from launcher.console.screenshot import Screenshotter
    from launcher.console.streams import ConsoleStreams
    from launcher.guest.operations import GuestOperations

    Context = grpc.aio.ServicerContext[Any, Any]

T = TypeVar("T")

_DETAILS_BYTES = 2048

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES),
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 200),
]


class LauncherService(launcher_pb2_grpc.LauncherServicer):
    """Translates requests, and exceptions into status codes. Rarely used modules are imported on demand."""

    def __init__(self, machine: VmController, paths: Paths) -> None:
        self._machine, self._paths = machine, paths
        self._verbs_made: GuestOperations | None = None
        self._streams_made: ConsoleStreams | None = None
        self._screen_made: Screenshotter | None = None

    @property
    def _verbs(self) -> GuestOperations:
        if self._verbs_made is None:
            from launcher.guest.operations import GuestOperations

            self._verbs_made = GuestOperations(self._machine)
        return self._verbs_made

    @property
    def _streams(self) -> ConsoleStreams:
        if self._streams_made is None:
            from launcher.console.streams import ConsoleStreams

            self._streams_made = ConsoleStreams(self._paths)
        return self._streams_made

    @property
    def _screen(self) -> Screenshotter:
        if self._screen_made is None:
            from launcher.console.screenshot import Screenshotter

            self._screen_made = Screenshotter(self._machine, self._paths)
        return self._screen_made

    def restore(self) -> None:
        """Resume what an earlier server left unfinished."""
        if self._machine.recall("thaw_at"):
            self._verbs.resume()

    async def close(self) -> None:
        """Close the consoles."""
        if self._streams_made is not None:
            await self._streams_made.hub.close()

    async def Sync(self, request: pb.SyncRequest, context: Context) -> pb.Report:
        """See the .proto."""
        return await answered(context, self._machine.sync(request))

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Report]:
        """See the .proto."""
        async for report in self._machine.watch():
            yield report

    async def Shutdown(self, request: pb.ShutdownRequest, context: Context) -> pb.ShutdownReply:
        """See the .proto."""
        await self._machine.shutdown(float(request.grace_seconds))
        return pb.ShutdownReply()

    async def Pause(self, request: pb.PauseRequest, context: Context) -> pb.Report:
        """See the .proto."""
        return await answered(context, self._machine.pause(True))

    async def Unpause(self, request: pb.UnpauseRequest, context: Context) -> pb.Report:
        """See the .proto."""
        return await answered(context, self._machine.pause(False))

    async def Reset(self, request: pb.ResetRequest, context: Context) -> pb.Report:
        """See the .proto."""
        return await answered(context, self._verbs.reset())

    async def SoftReboot(self, request: pb.SoftRebootRequest, context: Context) -> pb.Report:
        """See the .proto."""
        return await answered(context, self._verbs.soft_reboot())

    async def Freeze(self, request: pb.FreezeRequest, context: Context) -> pb.FreezeReply:
        """See the .proto."""
        await answered(context, self._verbs.freeze(request.unfreeze_seconds))
        return pb.FreezeReply()

    async def Unfreeze(self, request: pb.UnfreezeRequest, context: Context) -> pb.FreezeReply:
        """See the .proto."""
        await answered(context, self._verbs.unfreeze())
        return pb.FreezeReply()

    async def Users(self, request: pb.UsersRequest, context: Context) -> pb.UsersReply:
        """See the .proto."""
        return await answered(context, self._verbs.users())

    async def Filesystems(self, request: pb.FilesystemsRequest, context: Context) -> pb.FilesystemsReply:
        """See the .proto."""
        return await answered(context, self._verbs.filesystems())

    async def Screenshot(self, request: pb.ScreenshotRequest, context: Context) -> pb.ScreenshotReply:
        """See the .proto."""
        return pb.ScreenshotReply(png=await answered(context, self._screen.png()))

    async def Console(  # type: ignore[override]  # gRPC's reader/writer API, which the stub lacks
        self, requests: AsyncIterator[pb.ConsoleInput], context: Context
    ) -> None:
        """See the .proto."""
        await answered(context, self._streams.console(requests, context))

    async def Vnc(  # type: ignore[override]
        self, requests: AsyncIterator[pb.Chunk], context: Context
    ) -> None:
        """See the .proto."""
        await answered(context, self._streams.vnc(requests, context))


async def answered(context: Context, work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. An exception ends the call with the matching status."""
    try:
        return await work
    except Exception as error:
        await refuse(context, error, getattr(work, "__qualname__", repr(work)))


async def refuse(context: Context, error: Exception, work: str) -> NoReturn:
    """End a call with the status that matches `error`, raised by the coroutine function `work`."""
    if isinstance(error, OperationRefused | BuildError):
        code = grpc.StatusCode[error.code]
    elif isinstance(error, Unavailable):
        code = grpc.StatusCode.UNAVAILABLE
    elif isinstance(error, HypervisorError | DhcpError):
        code = grpc.StatusCode.INTERNAL
    else:
        log("error", "unhandled exception in RPC", work=work, error=repr(error))
        code = grpc.StatusCode.INTERNAL
    await context.abort(code, str(error).encode()[:_DETAILS_BYTES].decode(errors="ignore"))
    raise AssertionError("abort() raises")
