"""A relay between gRPC and a launcher that counts every frame of the launcher before gRPC reads it.

gRPC connects to an unlinked Unix socket of the handler, reachable by its descriptor only. Its bytes go to the
launcher's socket; the launcher's bytes pass a `FrameMeter`. Reading from one side stops while the other side does not
accept data, so buffers stay small at any send rate.
"""

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator

from prometheus_client import Counter

from handler.launchers.frame_budget import Budget, FrameMeter, OverBudget
from kit import log
from kit.tasks import BackgroundTasks

CUT_OFF = Counter(
    "hyperlet_handler_launchers_cut_off_total",
    "Launchers disconnected for exceeding their frame budget, by frame type",
    ["frame"],
)
HELD = 128 << 10
"""Bytes buffered for one side before reading from the other stops."""
_BACKLOG = 4


class Relay:
    """The relay of one launcher. `fd` is what gRPC connects to. `about`: the launcher, for the log."""

    def __init__(self, target: int, budget: Budget, **about: str) -> None:
        self.fd = -1
        self.cut_off: OverBudget | None = None
        """Why the relay was closed, if the launcher exceeded its budget."""
        self._target = target
        self._budget = budget
        self._ends: set[_End] = set()
        self._about = about
        self._tasks = BackgroundTasks(log.task_failed)

    def accept(self) -> asyncio.BufferedProtocol:
        """gRPC's end of a new connection."""
        return _End(self)

    def joined(self, end: "_End") -> None:
        """gRPC has connected: connect to the launcher. Nothing is read before that."""
        self._ends.add(end)
        self._tasks.start("relay", self._connect(end), **self._about)

    def left(self, end: "_End") -> None:
        """A connection has ended."""
        self._ends.discard(end)

    def cut(self, error: OverBudget) -> None:
        """Close every connection of this launcher at once."""
        if self.cut_off is None:
            self.cut_off = error
            CUT_OFF.labels(error.frame).inc()
        self._abort()

    async def close(self) -> None:
        """Close every connection; buffered data is dropped."""
        self._abort()
        await self._tasks.close()

    def _abort(self) -> None:
        for end in tuple(self._ends):
            end.abort()

    async def _connect(self, end: "_End") -> None:
        other = _End(self, FrameMeter(self._budget))
        loop = asyncio.get_running_loop()
        try:
            # /proc/self/fd leads to the inode of the verified socket, whatever its path names now.
            await loop.create_unix_connection(lambda: other, f"/proc/self/fd/{self._target}")
        except OSError:
            end.abort()
            return
        end.pair(other)


_received = memoryview(bytearray(HELD // 2))
"""The receive buffer of every connection of this process: data is copied from it before the next read."""


class _End(asyncio.BufferedProtocol):
    """One end of a connection; the launcher's has a meter."""

    def __init__(self, relay: Relay, meter: FrameMeter | None = None) -> None:
        self._relay = relay
        self._meter = meter
        self._transport: asyncio.Transport | None = None
        self._other: _End | None = None
        self._full = False
        """The other side does not accept more data."""
        self._waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HELD)
        transport.pause_reading()
        if self._meter is None:
            self._relay.joined(self)

    def pair(self, other: "_End") -> None:
        """Both ends are connected: start forwarding."""
        self._other, other._other = other, self
        if self._transport is None or self._transport.is_closing():
            other.abort()
            return
        self._read_on()
        other._read_on()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio. Its own buffers of 256 KiB would cost more than the rest of the relay."""
        return _received

    def buffer_updated(self, count: int) -> None:
        """See asyncio."""
        other, data = self._other, bytes(_received[:count])
        assert other is not None and other._transport is not None
        if self._meter is not None:
            try:
                wait = self._meter.feed(data)
            except OverBudget as error:
                self._relay.cut(error)
                return
            if wait:
                self._wait(wait)
        other._transport.write(data)

    def _wait(self, seconds: float) -> None:
        assert self._transport is not None
        if self._waits is None:
            self._transport.pause_reading()
            self._waits = asyncio.get_running_loop().call_later(seconds, self._waited)

    def _waited(self) -> None:
        self._waits = None
        self._read_on()

    def _read_on(self) -> None:
        if self._transport is not None and not self._full and self._waits is None and not self._transport.is_closing():
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """See asyncio: stop reading from the other end while this one is full."""
        if self._other is not None and self._other._transport is not None:
            self._other._full = True
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        """See asyncio."""
        if self._other is not None:
            self._other._full = False
            self._other._read_on()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio: data received so far is still delivered to the other end."""
        self._relay.left(self)
        if self._waits is not None:
            self._waits.cancel()
        if self._other is not None and self._other._transport is not None:
            self._other._transport.close()

    def abort(self) -> None:
        """Abort both ends."""
        for end in (self, self._other):
            if end is not None and end._transport is not None:
                end._transport.abort()


@contextlib.asynccontextmanager
async def relay(target: int, budget: Budget, **about: str) -> AsyncIterator[Relay]:
    """A relay to the socket with the descriptor `target`, which must stay open until the end of the block."""
    made = Relay(target, budget, **about)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        with tempfile.TemporaryDirectory(prefix="relay-") as folder:
            listening.bind(f"{folder}/s")
            made.fd = os.open(f"{folder}/s", os.O_PATH | os.O_CLOEXEC)
        stack.callback(os.close, made.fd)
        server = await asyncio.get_running_loop().create_unix_server(made.accept, sock=listening, backlog=_BACKLOG)
        try:
            yield made
        finally:
            server.close()
            await made.close()
