"""What a launcher may send: HTTP/2 frames and bytes, counted from the frames' headers alone.

gRPC limits messages and metadata, and leaves frames alone: PING, SETTINGS, WINDOW_UPDATE and others cost it memory
for as long as they come faster than they are worked off, some of it for good. An honest launcher sends few of them, so
each type has a budget of its own; a peer that goes over it is cut off. DATA frames and bytes carry consoles and
screens: more of them than the budget holds are not refused but wait.

Source: RFC 9113, sections 4.1 (frame header), 6 (frame types) and 6.10 (CONTINUATION).
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from api import names
from api.errors import HyperletError

HEADER = 9
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 0x1, 0x4
MAX_FRAME = 16384
"""Bytes of a frame's payload: what a client takes that announces nothing else (SETTINGS_MAX_FRAME_SIZE)."""
MAX_HEADER_BLOCK = 32768
"""Bytes of HEADERS and its CONTINUATIONs, compressed. gRPC's own limit is half of it, of the decoded text."""
BYTES_PER_SECOND, BYTES_AT_ONCE = 64 << 20, 32 << 20


class OverBudget(HyperletError):
    """The launcher sent more than any honest one does. The message says of what."""

    reason = names.REASON_LAUNCHER_CUT_OFF

    def __init__(self, frame: str, what: str) -> None:
        super().__init__(f"the launcher was cut off: {what}; its guest may have broken out of QEMU")
        self.frame = frame


class Allowance(NamedTuple):
    """So many frames a second, and so many at once after a pause."""

    name: str
    rate: float
    burst: float


# An honest launcher, measured: it sends two HEADERS for each call, an RST_STREAM for some, a WINDOW_UPDATE or two for
# each message of a console that it takes, a PING at most as often, and SETTINGS when the connection begins.
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
"""DATA frames without a byte, which no flow control stops: they serve padding and the end of a stream only."""
UNKNOWN = Allowance("unknown", 0.1, 5)
"""Frames of a type that RFC 9113 does not have: gRPC sends none."""


class _TokenBucket:
    """Tokens that come back with time."""

    __slots__ = ("_burst", "_rate", "_seen", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst, self._tokens, self._seen = rate, burst, burst, now

    def take(self, now: float, count: float = 1.0) -> float:
        """Takes tokens, on credit if need be. Returns the seconds until they are paid back; 0: they were there."""
        self._tokens = min(self._burst, self._tokens + (now - self._seen) * self._rate) - count
        self._seen = now
        return -self._tokens / self._rate if self._tokens < 0 else 0.0


class Budget:
    """What one launcher has left, through all its connections."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        now = clock()
        self._frames = {kind: _TokenBucket(each.rate, each.burst, now) for kind, each in ALLOWANCES.items()}
        self._empty = _TokenBucket(EMPTY.rate, EMPTY.burst, now)
        self._unknown = _TokenBucket(UNKNOWN.rate, UNKNOWN.burst, now)
        self._bytes = _TokenBucket(BYTES_PER_SECOND, BYTES_AT_ONCE, now)

    def data(self, now: float, frames: int, size: int) -> float:
        """Counts DATA frames and bytes of any kind. Returns the seconds to wait before more is read."""
        wait = self._frames[DATA].take(now, frames) if frames else 0.0
        return max(wait, self._bytes.take(now, size))

    def control(self, now: float, kind: int, flags: int, length: int) -> None:
        """Counts any other frame. Raises OverBudget."""
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
    """Reads the frame headers in one connection's bytes, in whatever pieces they come."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._head = b""
        """The beginning of a frame header whose rest has not come."""
        self._skip = 0
        """Bytes of payload that are still to come."""
        self._block = 0
        """Bytes of the header block that has no end yet; 0: there is none."""

    def feed(self, data: bytes) -> float:
        """Counts the next bytes. Returns the seconds to wait before more is read. Raises OverBudget."""
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
                raise OverBudget("size", f"it sent a frame of {length} bytes, over SETTINGS_MAX_FRAME_SIZE ({MAX_FRAME})")
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
        self._budget.control(now, kind, flags, length)
        if kind in (HEADERS, CONTINUATION):
            self._block += length + 1
            if self._block > MAX_HEADER_BLOCK:
                raise OverBudget("CONTINUATION", f"it sent a header block of more than {MAX_HEADER_BLOCK} bytes")
            if flags & END_HEADERS:
                self._block = 0
