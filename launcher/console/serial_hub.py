"""Multiplexes the serial console: all clients see the output, one has write access.

QEMU's serial socket takes one connection. It is open only while clients are attached, so an unused console costs
nothing. The first client gets the tail kept by the supervisor (`launcher.console.serial_tail`), later ones the recent
output.

Each client buffers at most LAG bytes. Output waits for the writer, and so does the guest, for at most STALL_SECONDS;
readers, and writers that are slower, lose output and are told how much.
"""

import asyncio
import contextlib
import errno
import socket
from collections import deque
from collections.abc import AsyncIterator

from kit.tasks import BackgroundTasks
from launcher.console import serial_tail
from launcher.guest.agent import text
from launcher.log import log, task_failed
from launcher.vm.errors import OperationRefused
from protos import launcher_pb2 as pb

CHUNK = 32 << 10
LAG = 32 << 10
"""Maximum buffered bytes per client; the chunk that exceeds it is accepted as a whole."""
MAX_CLIENTS = 64
STALL_SECONDS = 10.0
SETTLE_SECONDS = 0.05
"""Time for QEMU to accept the connection: meanwhile its output is only in the supervisor's file."""
_SMALL = 1024
_PACE_SECONDS = 0.001
"""QEMU writes byte by byte: after a small read, wait this long to gather more."""
_BLOCKED_SECONDS = 0.005
_NOTICES = 16


class SerialClient:
    """An attached client. `output()` yields its messages."""

    def __init__(self, who: str, watch: bool, replay: bytes) -> None:
        self.who = who
        self.watch = watch
        self.told_that_watching = False
        self._waiting = bytearray(replay)
        self._skipped = 0
        self._notices: deque[str] = deque(maxlen=_NOTICES)
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False

    @property
    def behind(self) -> bool:
        """Whether the buffer is full."""
        return len(self._waiting) >= LAG

    @property
    def misses(self) -> bool:
        """Whether output is being dropped."""
        return self._skipped > 0

    def feed(self, data: bytes) -> None:
        """Queue output of the guest, or drop it."""
        if self._skipped or self.behind:
            self._skipped += len(data)
        else:
            self._waiting += data
        self._news.set()

    def notify(self, notice: str) -> None:
        """Queue a message for the user."""
        self._notices.append(notice)
        self._news.set()

    def end(self) -> None:
        """End the output."""
        self._ended = True
        self._news.set()
        self._room.set()

    async def output(self) -> AsyncIterator[pb.ConsoleOutput]:
        """The client's messages, until the end."""
        while True:
            while (message := self._next()) is not None:
                yield message
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()

    def _next(self) -> pb.ConsoleOutput | None:
        if self._notices:
            return pb.ConsoleOutput(notice=self._notices.popleft())
        if self._waiting:
            data = bytes(self._waiting[:CHUNK])
            del self._waiting[: len(data)]
            self._room.set()
            return pb.ConsoleOutput(data=data)
        if self._skipped:
            skipped, self._skipped = self._skipped, 0
            return pb.ConsoleOutput(notice=f"{skipped} bytes of output were dropped: this client reads too slowly")
        return None

    async def room(self) -> None:
        """Wait until there is room in the buffer, at most STALL_SECONDS."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STALL_SECONDS):
                while self.behind and not self._ended:
                    self._room.clear()
                    await self._room.wait()


class SerialHub:
    """The serial console of this pod's VM. Runs in the event loop only."""

    def __init__(self, serial: str, last: str) -> None:
        self._path, self._last = serial, last
        self._viewers: list[SerialClient] = []
        self._opening = asyncio.Lock()
        self._serial: socket.socket | None = None
        self._reading: asyncio.Task[None] | None = None
        self._tasks = BackgroundTasks(task_failed)
        self._recent = bytearray()

    @property
    def typist(self) -> SerialClient | None:
        """The writer: the most recent read-write client."""
        return next((viewer for viewer in reversed(self._viewers) if not viewer.watch), None)

    # -- attaching and detaching

    async def attach(self, who: str, watch: bool, takeover: bool) -> SerialClient:
        """Attach a client; `leave` must follow. Raises OperationRefused."""
        async with self._opening:
            if len(self._viewers) >= MAX_CLIENTS:
                raise OperationRefused("RESOURCE_EXHAUSTED", f"{MAX_CLIENTS} clients are at the serial console already")
            before = self.typist
            if before and not watch and not takeover:
                raise OperationRefused(
                    "ALREADY_EXISTS", f"{before.who} is using the serial console: watch it, or take it over"
                )
            if self._reading and self._reading.done():
                raise OperationRefused("FAILED_PRECONDITION", "the virtual machine has ended")
            if self._serial is None:
                await self._open()
            viewer = SerialClient(text(who) or "unknown user", watch, serial_tail.screenful(bytes(self._recent)))
            self._viewers.append(viewer)
        if before and not watch:
            before.notify(f"{viewer.who} has taken over the console: your session is read-only")
            before.told_that_watching = True
        elif before:
            viewer.notify(f"your session is read-only: {before.who} has write access")
        return viewer

    async def close(self) -> None:
        """End the output of every client, and close the socket."""
        for viewer in self._viewers:
            viewer.end()
        self._close()
        await self._tasks.close()

    def leave(self, viewer: SerialClient) -> None:
        """Detach a client. The last one closes the socket."""
        before = self.typist
        viewer.end()
        with contextlib.suppress(ValueError):
            self._viewers.remove(viewer)
        if self.typist is not before and self.typist:
            self.typist.told_that_watching = False
            self.typist.notify(f"{viewer.who} has left the console: you have write access")
        if not self._viewers:
            self._close()

    async def _open(self) -> None:
        total, _ = serial_tail.read(self._last)
        serial = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            serial.connect(self._path)
            await asyncio.sleep(SETTLE_SECONDS)
            # In this order: QEMU writes to the socket before it writes to the file.
            now, last = serial_tail.read(self._last)
            fresh = _received(serial)
        except BaseException as error:
            serial.close()
            if isinstance(error, OSError):
                raise OperationRefused("FAILED_PRECONDITION", _reason(error)) from error
            raise
        if len(fresh) < serial_tail.LARGEST:
            self._recent += serial_tail.before(last, fresh, now - total)
        self._remember(fresh)
        self._serial = serial
        self._reading = self._tasks.start("serial-console", self._read(serial), socket=self._path)

    def _close(self) -> None:
        if self._reading:
            self._reading.cancel()
        if self._serial:
            self._serial.close()
        self._reading = self._serial = None
        self._recent.clear()

    # -- output

    def _remember(self, data: bytes) -> None:
        self._recent += data
        del self._recent[: -serial_tail.LARGEST]

    async def _read(self, serial: socket.socket) -> None:
        """Forward the guest's output until the VM ends."""
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(serial, CHUNK):
                self._remember(data)
                for viewer in self._viewers:
                    viewer.feed(data)
                typist = self.typist
                if typist and typist.behind and not typist.misses:
                    await typist.room()
                if len(data) < _SMALL:
                    await asyncio.sleep(_PACE_SECONDS)
        except OSError as error:
            log("warning", "lost the connection to QEMU's serial socket", error=str(error))
        finally:
            for viewer in self._viewers:
                viewer.end()

    # -- input

    async def type(self, viewer: SerialClient, data: bytes) -> None:
        """Forward a client's input as fast as the guest reads it. A read-only client is notified once."""
        while data and self._serial:
            if self.typist is not viewer:
                if not viewer.told_that_watching:
                    viewer.told_that_watching = True
                    viewer.notify("your session is read-only: input is ignored")
                return
            try:
                data = data[self._serial.send(data) :]
            except BlockingIOError:
                await asyncio.sleep(_BLOCKED_SECONDS)
            except OSError:
                return  # the VM has ended; `output` ends as well


def _received(serial: socket.socket) -> bytes:
    """What can be read without blocking."""
    try:
        return serial.recv(CHUNK)
    except BlockingIOError:
        return b""


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return "the virtual machine has no serial console (spec.domain.devices.autoattachSerialConsole), or has ended"
    return f"the serial console cannot be opened: {error.strerror}"
