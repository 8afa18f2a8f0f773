"""Rate limits for what a launcher may send: HTTP/2 frames and bytes, counted from frame headers.

gRPC limits messages and metadata but not frames: PING, SETTINGS, WINDOW_UPDATE and others cost it memory while they
arrive faster than it processes them, some of it permanently. A genuine launcher sends few of them, so each type has its
own budget, and a peer that exceeds one is disconnected. DATA frames and bytes carry consoles and VNC: beyond their
budget they are delayed, not refused.

Source: RFC 9113, sections 4.1 (frame header), 6 (frame types) and 6.10 (CONTINUATION).
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from api import names
from api.errors import HyperletError

HEADER = 9
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_HEADERS = 0x4
MAX_FRAME = 16384
"""Maximum payload in bytes: the default SETTINGS_MAX_FRAME_SIZE, which gRPC does not raise."""
MAX_HEADER_BLOCK = 32768
"""Maximum bytes of a HEADERS frame with its CONTINUATIONs, compressed. gRPC limits the decoded text to half."""
BYTES_PER_SECOND, BYTES_AT_ONCE = 64 << 20, 32 << 20


class OverBudget(HyperletError):
    """The launcher exceeded its budget. The message names the frame type."""

    reason = names.REASON_LAUNCHER_CUT_OFF

    def __init__(self, frame: str, what: str) -> None:
        super().__init__(f"the launcher was cut off: {what}; its guest may have broken out of QEMU")
        self.frame = frame


class Allowance(NamedTuple):
    """A token bucket's parameters: frames per second, and burst size."""

    name: str
    rate: float
    burst: float


# Measured on a genuine launcher: two HEADERS per call, an RST_STREAM for some, one or two WINDOW_UPDATEs per console
# message received, at most as many PINGs, and SETTINGS when the connection opens.
ALLOWANCES = {
    DATA: Allowance("DATA", 4000, 8000),
    HEADERS: Allowance("HEADERS", 200, 2000),
    PRIORITY: Allowance("PRIORITY", 0.1, 5),
    RST_STREAM: Allowance("RST_STREAM", 100, 1000),
    SETTINGS: Allowance("SETTINGS", 1, 50),
    PING: Allowance("PING", 100, 500),
    GOAWAY: Allowance("GOAWAY", 0.1, 10),
    WINDOW_UPDATE: Allowance("WINDOW_UPDATE", 2000, 8000),
    CONTINUATION: Allowance("CONTINUATION", 10, 50),
}
EMPTY = Allowance("empty DATA", 1, 50)
"""DATA frames without payload, which flow control does not limit: used for padding and END_STREAM only."""
UNKNOWN = Allowance("unknown", 0.1, 5)
"""Frame types unknown to RFC 9113: gRPC sends none."""


class _TokenBucket:
    """A token bucket."""

    __slots__ = ("_burst", "_rate", "_seen", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst, self._tokens, self._seen = rate, burst, burst, now

    def take(self, now: float, count: float = 1.0) -> float:
        """Take tokens, on credit if necessary. Returns the seconds until the debt is repaid; 0: none."""
        self._tokens = min(self._burst, self._tokens + (now - self._seen) * self._rate) - count
        self._seen = now
        return -self._tokens / self._rate if self._tokens < 0 else 0.0


class Budget:
    """The remaining budget of one launcher, over all its connections."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        now = clock()
        self._frames = {kind: _TokenBucket(each.rate, each.burst, now) for kind, each in ALLOWANCES.items()}
        self._empty = _TokenBucket(EMPTY.rate, EMPTY.burst, now)
        self._unknown = _TokenBucket(UNKNOWN.rate, UNKNOWN.burst, now)
        self._bytes = _TokenBucket(BYTES_PER_SECOND, BYTES_AT_ONCE, now)

    def data(self, now: float, frames: int, size: int) -> float:
        """Count DATA frames, and bytes of any frame. Returns the seconds to wait before reading on."""
        wait = self._frames[DATA].take(now, frames) if frames else 0.0
        return max(wait, self._bytes.take(now, size))

    def control(self, now: float, kind: int) -> None:
        """Count any other frame. Raises OverBudget."""
        if kind == DATA:
            bucket, allowance = self._empty, EMPTY
        elif kind in self._frames:
            bucket, allowance = self._frames[kind], ALLOWANCES[kind]
        elif kind == PUSH_PROMISE:
            raise OverBudget("PUSH_PROMISE", "it sent a PUSH_PROMISE frame, which no gRPC server does")
        else:
            bucket, allowance = self._unknown, UNKNOWN
        if bucket.take(now):
            raise OverBudget(allowance.name, f"more than {allowance.rate:g} {allowance.name} frames a second")


class FrameMeter:
    """Parses the frame headers of one connection from arbitrary chunks."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._head = b""
        """An incomplete frame header."""
        self._skip = 0
        """Bytes of payload still to be skipped."""
        self._block = 0
        """Bytes of the open header block; 0: none is open."""

    def feed(self, data: bytes) -> float:
        """Count the next bytes. Returns the seconds to wait before reading on. Raises OverBudget."""
        budget = self._budget
        now, at, end, frames = budget.clock(), 0, len(data), 0
        if self._head:
            need = HEADER - len(self._head)
            if end < need:
                self._head += data
                return budget.data(now, 0, end)
            data, end = self._head + data, end + len(self._head)
            self._head = b""
        at += self._skip
        while at + HEADER <= end:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            kind, flags = data[at + 3], data[at + 4]
            if length > MAX_FRAME:
                raise OverBudget(
                    "size", f"it sent a frame of {length} bytes, over SETTINGS_MAX_FRAME_SIZE ({MAX_FRAME})"
                )
            if kind == DATA and length and not self._block:
                frames += 1
            else:
                self._other(now, kind, flags, length)
            at += HEADER + length
        if at < end:
            self._head, self._skip = data[at:end], 0
        else:
            self._skip = at - end
        return budget.data(now, frames, end)

    def _other(self, now: float, kind: int, flags: int, length: int) -> None:
        if self._block and kind != CONTINUATION:
            raise OverBudget("CONTINUATION", "it sent another frame inside a header block")
        self._budget.control(now, kind)
        if kind in (HEADERS, CONTINUATION):
            self._block += length + 1
            if self._block > MAX_HEADER_BLOCK:
                raise OverBudget("CONTINUATION", f"it sent a header block of more than {MAX_HEADER_BLOCK} bytes")
            if flags & END_HEADERS:
                self._block = 0
