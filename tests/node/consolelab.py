"""Clients for the streams of a launcher: a serial console client, and a VNC viewer (RFB, RFC 6143)."""

import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from protos import launcher_pb2 as pb

PATIENCE = 60.0
"""Seconds until a test gives up; nothing is measured by it."""


class Stream:
    """One side of a call with streams both ways. `received` collects what comes; `None` in it is the end."""

    def __init__(self, method: Callable[..., Any], first: Any) -> None:
        self._out: queue.Queue[Any] = queue.Queue()
        self._out.put(first)
        self.received: queue.Queue[Any] = queue.Queue()
        self.error: grpc.RpcError | None = None
        self.call = method(iter(self._out.get, None))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for message in self.call:
                self.received.put(message)
        except grpc.RpcError as error:
            self.error = error
        self.received.put(None)

    def send(self, message: Any) -> None:
        self._out.put(message)

    def hang_up(self) -> None:
        """Closes the sending side; the server ends the call."""
        self._out.put(None)

    def rest(self) -> list[Any]:
        """All messages until the stream ends."""
        return list(iter(lambda: self.received.get(timeout=PATIENCE), None))

    def close(self) -> None:
        self.call.cancel()
        self._out.put(None)


class ConsoleClient:
    """A serial console client. `wrap` converts a message to the request type of the method."""

    def __init__(
        self,
        method: Callable[..., Any],
        who: str = "alice",
        wrap: Callable[[pb.ConsoleInput], Any] = lambda message: message,
        **first: bool,
    ) -> None:
        self._wrap = wrap
        self.stream = Stream(method, wrap(pb.ConsoleInput(who=who, **first)))
        self.output = b""
        self.notices: list[str] = []
        self.ended = False

    def type(self, text: str) -> None:
        self.stream.send(self._wrap(pb.ConsoleInput(data=text.encode())))

    def wait_output(self, wanted: str, times: int = 1) -> None:
        """Waits until the text has been printed."""
        self._until(lambda: self.output.count(wanted.encode()) >= times, wanted)

    def wait_notice(self, wanted: str) -> None:
        """Waits for a notice."""
        self._until(lambda: any(wanted in notice for notice in self.notices), wanted)

    def clear_output(self) -> None:
        self.output = b""

    def wait_end(self) -> None:
        self._until(lambda: self.ended, "the end")

    def _until(self, test: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not test():
            assert not self.ended, f"the stream ended before {what!r}: {self.stream.error}, {self.output!r}"
            try:
                message = self.stream.received.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"never saw {what!r}, but {self.output[-2000:]!r} and {self.notices}") from None
            if message is None:
                self.ended = True
            else:
                self.output += message.data
                self.notices += [message.notice] if message.notice else []

    def close(self) -> None:
        self.stream.close()


class Viewer:
    """A VNC client that asks for the whole screen once."""

    def __init__(
        self,
        method: Callable[..., Any],
        first: Any = None,
        wrap: Callable[[bytes], Any] = lambda data: pb.Chunk(data=data),
    ) -> None:
        self._wrap = wrap
        self.stream = Stream(method, pb.Chunk() if first is None else first)
        self._data = b""
        self.width = self.height = 0

    def send(self, data: bytes) -> None:
        self.stream.send(self._wrap(data))

    def read(self, count: int) -> bytes:
        while len(self._data) < count:
            message = self.stream.received.get(timeout=PATIENCE)
            assert message is not None, f"the connection ended: {self.stream.error}"
            assert len(message.data) <= 64 << 10
            self._data += message.data
        data, self._data = self._data[:count], self._data[count:]
        return data

    def handshake(self, shared: bool) -> None:
        """No authentication: the socket is the launcher's own."""
        assert self.read(12) == b"RFB 003.008\n"
        self.send(b"RFB 003.008\n")
        assert 1 in self.read(self.read(1)[0])
        self.send(b"\x01")
        assert self.read(4) == bytes(4)
        self.send(bytes([shared]))
        self.width, self.height = struct.unpack(">HH", self.read(4))
        self.read(16)
        self.read(struct.unpack(">I", self.read(4))[0])

    def screen(self) -> bytes:
        """The pixels, four bytes each, row by row."""
        self.send(struct.pack(">BBHi", 2, 0, 1, 0))  # SetEncodings: raw
        self.send(struct.pack(">BBHHHH", 3, 0, 0, 0, self.width, self.height))
        pixels = bytearray(4 * self.width * self.height)
        missing = self.width * self.height
        while missing > 0:
            for x, y, width, height in self._rectangles():
                for row in range(y, y + height):
                    at = 4 * (row * self.width + x)
                    pixels[at : at + 4 * width] = self.read(4 * width)
                missing -= width * height
        return bytes(pixels)

    def _rectangles(self) -> Iterator[tuple[int, int, int, int]]:
        assert self.read(1) == b"\0", "only FramebufferUpdate is expected"
        for _ in range(struct.unpack(">xH", self.read(3))[0]):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self.read(12))
            assert encoding == 0
            yield x, y, width, height

    def close(self) -> None:
        self.stream.close()
