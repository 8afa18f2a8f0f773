"""The Launcher service of protos/launcher.proto: gRPC's side of `machine.Machine`."""

from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc

from launcher.builder import BuildError
from launcher.hypervisor import HypervisorError, Unavailable
from launcher.log import log
from launcher.machine import Machine, Refused
from protos import launcher_pb2 as pb
from protos import launcher_pb2_grpc

LARGEST_REQUEST = 1 << 20
LARGEST_ANSWER = 1 << 20
_DETAILS_BYTES = 2048

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", LARGEST_REQUEST),
    ("grpc.max_send_message_length", LARGEST_ANSWER),
    ("grpc.max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 32),
]


class LauncherService(launcher_pb2_grpc.LauncherServicer):
    """Translates requests, and exceptions into status codes."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def Sync(self, request: pb.SyncRequest, context: Any) -> pb.Report:
        """See the .proto."""
        try:
            return await self._machine.sync(request)
        except Exception as error:
            await refuse(context, error)

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.Report]:
        """See the .proto."""
        async for report in self._machine.watch():
            yield report

    async def Shutdown(self, request: pb.ShutdownRequest, context: Any) -> pb.ShutdownReply:
        """See the .proto."""
        await self._machine.shutdown(float(request.grace_seconds))
        return pb.ShutdownReply()

    async def Pause(self, request: pb.PauseRequest, context: Any) -> pb.Report:
        """See the .proto."""
        try:
            return await self._machine.pause(True)
        except Exception as error:
            await refuse(context, error)

    async def Unpause(self, request: pb.UnpauseRequest, context: Any) -> pb.Report:
        """See the .proto."""
        try:
            return await self._machine.pause(False)
        except Exception as error:
            await refuse(context, error)


async def refuse(context: Any, error: Exception) -> NoReturn:
    """Ends a call with the status that fits `error`."""
    if isinstance(error, Refused | BuildError):
        code = grpc.StatusCode[error.code]
    elif isinstance(error, Unavailable):
        code = grpc.StatusCode.UNAVAILABLE
    elif isinstance(error, HypervisorError):
        code = grpc.StatusCode.INTERNAL
    else:
        log("error", "a call failed for want of better code", error=repr(error))
        code = grpc.StatusCode.INTERNAL
    await context.abort(code, str(error).encode()[:_DETAILS_BYTES].decode(errors="ignore"))
    raise AssertionError("abort() raises")
