"""Local listeners; each connection is forwarded to a VM over its own WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, cast

from cli.problem import CliError
from kit.tasks import BackgroundTasks

if TYPE_CHECKING:
    from cli.client import ApiClient

IDLE_SECONDS = 300.0
"""Idle timeout of a UDP sender."""
QUEUE = 64
"""Queued datagrams per sender; more are dropped."""


def report_error(words: str) -> None:
    """Reports a failed connection; the others continue."""
    print(f"error: {words}", file=sys.stderr, flush=True)


def _task_failed(what: str, error: BaseException, _about: Mapping[str, object]) -> None:
    report_error(f"{what}: {type(error).__name__}: {error}")


def bound(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """Binds a socket to a local address; port 0 selects a free port. Raises CliError."""
    opened: socket.socket | None = None
    try:
        family, _, protocol, _, place = socket.getaddrinfo(address, port, type=kind, flags=socket.AI_PASSIVE)[0]
        opened = socket.socket(family, kind, protocol)
        if kind is socket.SOCK_STREAM:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(place)
    except (OSError, OverflowError) as error:
        if opened is not None:
            opened.close()
        raise CliError(
            f"cannot listen on {address} port {port}: {getattr(error, 'strerror', None) or error}"
        ) from error
    opened.setblocking(False)
    return opened


@contextlib.asynccontextmanager
async def tcp(client: ApiClient, path: str, address: str, port: int, what: str) -> AsyncIterator[int]:
    """Listens for TCP until exit; yields the port. `what` names the target in error messages."""
    from cli.streams import StreamClosed, both_ways, pieces

    tasks = BackgroundTasks(_task_failed)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        try:
            async with client.socket(path) as remote:
                await both_ways(pieces(reader), remote, write)
        except (CliError, StreamClosed) as error:
            report_error(f"{what}: {str(error) or 'connection lost'}")
        except ConnectionError:
            pass  # the local client disconnected
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.start(what, carry(reader, writer))

    listener = bound(address, port, socket.SOCK_STREAM)
    server = await asyncio.start_server(accept, sock=listener)
    try:
        yield listener.getsockname()[1]
    finally:
        server.close()
        await tasks.close()


class _Datagrams(asyncio.DatagramProtocol):
    """A local UDP port: one WebSocket per sender, one message per datagram."""

    def __init__(self, client: ApiClient, path: str, what: str) -> None:
        self._client = client
        self._path = path
        self._what = what
        self._transport: asyncio.DatagramTransport | None = None
        self._queues: dict[tuple[str, int], asyncio.Queue[bytes]] = {}
        self._tasks = BackgroundTasks(_task_failed)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            asyncio.DatagramTransport, transport
        )  # has its methods, but not its class before Python 3.12

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        queue = self._queues.get(addr)
        if queue is None:
            queue = self._queues[addr] = asyncio.Queue(QUEUE)
            self._tasks.start(self._what, self._carry(addr, queue))
        with contextlib.suppress(asyncio.QueueFull):
            queue.put_nowait(data)

    async def _carry(self, sender: tuple[str, int], queue: asyncio.Queue[bytes]) -> None:
        from cli.streams import StreamClosed, both_ways

        async def write(data: bytes) -> None:
            assert self._transport is not None
            self._transport.sendto(data, sender)

        try:
            async with self._client.socket(self._path) as remote:
                await both_ways(_waiting(queue), remote, write)
        except (CliError, StreamClosed) as error:
            report_error(f"{self._what}: {str(error) or 'connection lost'}")
        finally:
            self._queues.pop(sender, None)

    async def close(self) -> None:
        """Closes the connections of all senders."""
        await self._tasks.close()


async def _waiting(queue: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
    """Yields datagrams until none arrived for IDLE_SECONDS."""
    while True:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                data = await queue.get()
        except TimeoutError:
            return
        yield data


@contextlib.asynccontextmanager
async def udp(client: ApiClient, path: str, address: str, port: int, what: str) -> AsyncIterator[int]:
    """Listens for UDP until exit; yields the port."""
    listener = bound(address, port, socket.SOCK_DGRAM)
    protocol = _Datagrams(client, path, what)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: protocol, sock=listener)
    try:
        yield listener.getsockname()[1]
    finally:
        transport.close()
        await protocol.close()
