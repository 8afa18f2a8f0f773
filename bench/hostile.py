"""A compromised launcher: a raw HTTP/2 peer that floods its handler with frames of one type.

Source of the frames: RFC 9113, section 6. Used by `bench floods` and by tests/unit/security.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path

CHUNK = 64 << 10
"""Bytes of one send."""


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


SETTINGS = frame(4)
HEADERS_WITHOUT_END = frame(1, 0, 1, b"\x88")
FLOODS: dict[str, tuple[bytes, bytes]] = {
    # Bytes sent once, and bytes sent repeatedly afterwards.
    "PING": (b"", frame(6, 0, 0, b"12345678")),
    "PING ack": (b"", frame(6, 1, 0, b"12345678")),
    "SETTINGS": (b"", frame(4, 0, 0, struct.pack(">HI", 4, 65535))),
    "SETTINGS ack": (b"", frame(4, 1)),
    "WINDOW_UPDATE": (b"", frame(8, 0, 0, struct.pack(">I", 1))),
    "WINDOW_UPDATE of a stream": (b"", frame(8, 0, 1, struct.pack(">I", 1))),
    "RST_STREAM": (b"", frame(3, 0, 1, struct.pack(">I", 8))),
    "RST_STREAM of no stream": (b"", frame(3, 0, 1001, struct.pack(">I", 8))),
    "PRIORITY": (b"", frame(2, 0, 1, b"\0\0\0\0\x10")),
    "GOAWAY": (b"", frame(7, 0, 0, struct.pack(">II", 2**31 - 1, 0))),
    "PUSH_PROMISE": (b"", frame(5, 4, 1, struct.pack(">I", 2) + b"\x82")),
    "HEADERS": (b"", frame(1, 4, 1, b"\x88")),
    "CONTINUATION": (HEADERS_WITHOUT_END, frame(9, 0, 1, b"\x00\x01a\x01b" * 100)),
    "empty CONTINUATION": (HEADERS_WITHOUT_END, frame(9, 0, 1)),
    "empty DATA": (b"", frame(0, 0, 1)),
    "DATA of a byte": (b"", frame(0, 0, 1, b"\0")),
    "unknown type": (b"", frame(0x55, 0, 0, b"x" * 100)),
}


class HostilePeer:
    """Listens at `folder`/s, and floods each connection until it is closed. `sent`: total bytes."""

    def __init__(self, folder: Path, once: bytes, again: bytes, *, reads: bool = True) -> None:
        self.sent = 0
        self.connections = 0
        self._once, self._again, self._reads = once, again, reads
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(f"{folder}/s")
        self._listening.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stops listening."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            with connection, contextlib.suppress(OSError):
                self._flood(connection)

    def _flood(self, connection: socket.socket) -> None:
        # Receive the client's preface and first call, so that stream 1 exists.
        connection.sendall(SETTINGS)
        if connection.recv(CHUNK) and self._reads:
            threading.Thread(target=_drain, args=(connection,), daemon=True).start()
        self.sent += connection.send(self._once) if self._once else 0
        many = self._again * max(1, CHUNK // max(1, len(self._again)))
        while many:
            self.sent += connection.send(many)
        connection.recv(1)


def _drain(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(CHUNK):
            pass
