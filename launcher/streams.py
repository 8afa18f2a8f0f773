"""The streaming calls: gRPC's side of the serial console and of VNC. Loaded with the first of them."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

from kit.duplex import TAKEN, until_one_ends
from launcher.agent import text
from launcher.paths import Paths
from launcher.refusal import Refused
from launcher.serial_hub import Hub
from protos import launcher_pb2 as pb

CHUNK = 64 << 10
FIRST_SECONDS = 10.0
"""What the caller has to send the first message."""


class Streams:
    """The consoles of this pod's VM."""

    def __init__(self, paths: Paths) -> None:
        self._vnc = paths.vnc_socket
        self.hub = Hub(paths.serial_socket, paths.serial_tail)

    async def console(self, requests: AsyncIterator[pb.ConsoleInput], context: Any) -> None:
        """One person at the serial console, until they or the VM leave. Raises Refused."""
        first = await _first(requests)
        viewer = await self.hub.attach(text(first.who), first.watch, first.takeover)

        async def take() -> None:
            async for request in requests:
                await self.hub.type(viewer, request.data)

        async def give() -> None:
            async for message in viewer.output():
                await context.write(message)

        try:
            await context.send_initial_metadata(TAKEN)
            await until_one_ends(take(), give())
        finally:
            self.hub.leave(viewer)

    async def vnc(self, requests: AsyncIterator[pb.Chunk], context: Any) -> None:
        """One viewer of the screen, with a connection of their own. Raises Refused."""
        await _first(requests)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as screen:
            try:
                screen.connect(self._vnc)
            except OSError as error:
                raise Refused("FAILED_PRECONDITION", _why(error)) from error
            await context.send_initial_metadata(TAKEN)

            async def take() -> None:
                async for request in requests:
                    await loop.sock_sendall(screen, request.data)

            async def give() -> None:
                while data := await loop.sock_recv(screen, CHUNK):
                    await context.write(pb.Chunk(data=data))

            with contextlib.suppress(ConnectionError):  # QEMU has hung up
                await until_one_ends(take(), give())


async def _first(requests: AsyncIterator[Any]) -> Any:
    """The message that opens a stream. Raises Refused."""
    try:
        async with asyncio.timeout(FIRST_SECONDS):
            return await anext(aiter(requests))
    except (TimeoutError, StopAsyncIteration):
        raise Refused("INVALID_ARGUMENT", "the first message, which opens the stream, did not come") from None


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return "the virtual machine has no screen (spec.domain.devices.autoattachGraphicsDevice), or has ended"
    if isinstance(error, BlockingIOError):
        return "QEMU is too busy to take another viewer of the screen: try again"
    return f"the screen cannot be opened: {error.strerror}"
