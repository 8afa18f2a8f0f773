"""Copies the guest's serial output to `kubectl logs`.

QEMU logs the serial port into a FIFO and stalls when it is full. So the FIFO is always drained; output that standard
output does not take, or that exceeds the rate, is dropped with a note. The output is untrusted and may be shown in a
terminal: control characters other than newline, return and tab are removed, and of the escape sequences only colours
(SGR) pass.
"""

import errno
import fcntl
import os

from launcher.console.serial_tail import SerialTail

RATE = 1 << 20
"""Bytes per second; also the burst size."""
BACKLOG = 256 << 10
"""Bytes buffered while standard output is blocked."""
_CHUNK = 64 << 10
_SGR = b"0123456789;"
_LONGEST_SGR = 32
_REMOVED = bytes(c for c in range(32) if c not in b"\n\r\t\x1b") + b"\x7f"


class TerminalFilter:
    """Sanitizes terminal output. An incomplete escape sequence is kept for the next chunk."""

    def __init__(self) -> None:
        self._carried = b""

    def feed(self, data: bytes) -> bytes:
        """`data` without control characters and escape sequences other than colours."""
        first, *rest = (self._carried + data).translate(None, _REMOVED).split(b"\x1b")
        self._carried = b""
        parts = [first]
        for number, text in enumerate(rest, 1):
            parts.append(self._sequence(text, last=number == len(rest)))
        return self._without_c1(b"".join(parts))

    def _sequence(self, text: bytes, last: bool) -> bytes:
        if text[:1] == b"[":
            end = 1
            while end < len(text) and text[end] in _SGR and end < _LONGEST_SGR:
                end += 1
            if text[end : end + 1] == b"m":
                return b"\x1b" + text
            if last and end == len(text) and end < _LONGEST_SGR:
                self._carried = b"\x1b" + text
                return b""
        elif last and not text:
            self._carried = b"\x1b"
            return b""
        return b"^[" + text

    def _without_c1(self, data: bytes) -> bytes:
        """U+0080 to U+009F are C2 80 to C2 9F in UTF-8: single-character equivalents of ESC sequences."""
        if data.endswith(b"\xc2"):
            # Never together with a carried escape, which would be followed by text.
            self._carried = b"\xc2" + self._carried
            data = data[:-1]
        if b"\xc2" not in data:
            return data
        first, *rest = data.split(b"\xc2")
        return first + b"".join(b"?" + t[1:] if t and t[0] < 0xA0 else b"\xc2" + t for t in rest)


class SerialLog:
    """Copies the FIFO to standard output. `source` and `target` are for poll(); `pump()` copies without blocking."""

    def __init__(self, fifo: str, target: int, tail: SerialTail | None = None) -> None:
        # Opened for reading and writing: QEMU's open never blocks, and there is no end of file.
        self.source = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.target = target
        try:  # noqa: SIM105
            fcntl.fcntl(self.source, fcntl.F_SETPIPE_SZ, BACKLOG)
        except OSError:
            pass  # over the user's pipe quota: keep the default size
        os.set_blocking(target, False)
        self._tail = tail
        self._filter = TerminalFilter()
        self._pending = bytearray()
        self._dropped = 0
        self._allowance = float(RATE)
        self._refilled = 0.0

    @property
    def blocked(self) -> bool:
        """Whether output waits for standard output to become writable."""
        return bool(self._pending)

    def pump(self, now: float) -> None:
        """Drain the FIFO, then write what is allowed. `now` is monotonic seconds."""
        self._allowance = min(float(RATE), self._allowance + (now - self._refilled) * RATE)
        self._refilled = now
        for _ in range(16):
            data = self._read()
            if not data:
                break
            if self._tail:
                self._tail.feed(data)
            self._take(data)
        if self._tail:
            self._tail.save()
        if self._dropped and len(self._pending) < BACKLOG // 2 and self._allowance > _CHUNK:
            self._pending += b"\n[hyperlet: %d bytes of the guest's output were dropped]\n" % self._dropped
            self._dropped = 0
        self.write()

    def _read(self) -> bytes:
        try:
            return os.read(self.source, _CHUNK)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return b""
            raise

    def _take(self, data: bytes) -> None:
        room = min(BACKLOG - len(self._pending), int(self._allowance))
        if room < len(data):
            self._dropped += len(data) - max(room, 0)
            data = data[: max(room, 0)]
        self._allowance -= len(data)
        if data:
            self._pending += self._filter.feed(data)

    def write(self) -> None:
        """Write what standard output takes without blocking; drop everything if it was closed."""
        while self._pending:
            try:
                written = os.write(self.target, self._pending[:_CHUNK])
            except BlockingIOError:
                return
            except OSError:
                self._pending.clear()
                return
            del self._pending[:written]
