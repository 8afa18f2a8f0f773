"""The streaming RPCs: serial console and VNC. Imported with the first of them."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

from kit.duplex import TAKEN
from kit.tasks import until_one_ends
from launcher.console.serial_hub import SerialHub
from launcher.guest.agent import text
from launcher.paths import Paths
from launcher.vm.errors import OperationRefused
from protos import launcher_pb2 as pb
from protos import limits

FIRST_SECONDS = 10.0
"""Timeout for the client's first message."""
CONNECT_SECONDS, KNOCK_SECONDS = 5.0, 0.02
"""Timeout and retry interval while QEMU's listen backlog is full."""


class ConsoleStreams:
    """The consoles of this pod's VM."""

    def __init__(self, paths: Paths) -> None:
        self._vnc = paths.vnc_socket
        self.hub = SerialHub(paths.serial_socket, paths.serial_tail)

    async def console(self, requests: AsyncIterator[pb.ConsoleInput], context: Any) -> None:
        """Serve one console client until it or the VM ends. Raises OperationRefused."""
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
        """Serve one VNC client over a connection of its own. Raises OperationRefused."""
        await _first(requests)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as screen:
            await _connect(screen, self._vnc)
            await context.send_initial_metadata(TAKEN)

            async def take() -> None:
                async for request in requests:
                    await loop.sock_sendall(screen, request.data)

            async def give() -> None:
                while data := await loop.sock_recv(screen, limits.CHUNK_BYTES):
                    await context.write(pb.Chunk(data=data))

            with contextlib.suppress(ConnectionError):  # QEMU closed the connection
                await until_one_ends(take(), give())


async def _connect(screen: socket.socket, path: str, seconds: float = CONNECT_SECONDS) -> None:
    """Connect to QEMU's VNC socket. Raises OperationRefused.

    QEMU's VNC server has a listen backlog of 1 (listen(2)): when several clients connect at once, or while a large
    screen is drawn, some must retry.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return screen.connect(path)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise OperationRefused(
                    "RESOURCE_EXHAUSTED", "QEMU is too busy to accept another VNC connection: try again"
                ) from error
        except OSError as error:
            raise OperationRefused("FAILED_PRECONDITION", _reason(error)) from error
        await asyncio.sleep(KNOCK_SECONDS)


async def _first(requests: AsyncIterator[Any]) -> Any:
    """The message that opens a stream. Raises OperationRefused."""
    try:
        async with asyncio.timeout(FIRST_SECONDS):
            return await anext(aiter(requests))
    except (TimeoutError, StopAsyncIteration):
        raise OperationRefused("INVALID_ARGUMENT", "no first message, which opens the stream, was received") from None


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return "the virtual machine has no screen (spec.domain.devices.autoattachGraphicsDevice), or has ended"
    return f"cannot connect to QEMU's VNC socket: {error.strerror}"
