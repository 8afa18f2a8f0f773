"""The last of the guest's serial output, as it was, for whoever attaches to the console next.

The supervisor keeps it in a small file while it drains the log; the server reads it when somebody attaches. Nobody has
to be asked for it, it outlives the server, and it costs a VM nothing that prints nothing.
Stdlib only, and little of it: the supervisor imports this module.
"""

import os

LARGEST = 8 << 10
"""Bytes that are kept."""
LINES = 24
_COUNT = 8
_TRIES = 5


class SerialTail:
    """The writing side. The file: how many bytes there ever were, the last of them, and that number once more."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._last = bytearray()
        self._total = 0
        self._saved = 0

    def feed(self, data: bytes) -> None:
        """Takes in output; `save` writes it."""
        self._total += len(data)
        self._last += data[-LARGEST:]
        del self._last[:-LARGEST]

    def save(self) -> None:
        """Writes what is new. A disk that is full costs the replay, not the console."""
        if self._saved == self._total:
            return
        count = self._total.to_bytes(_COUNT, "little")
        try:
            written = os.pwrite(self._file, count + self._last + count, 0)
        except OSError:
            return
        if written == len(self._last) + 2 * _COUNT:
            self._saved = self._total


def read(path: str) -> tuple[int, bytes]:
    """How many bytes the guest has printed, and the last of them; nothing if nobody has kept them."""
    total, last = 0, b""
    for _ in range(_TRIES):
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                data = file.read(LARGEST + 2 * _COUNT)
        except OSError:
            return 0, b""
        total, last = int.from_bytes(data[:_COUNT], "little"), data[_COUNT:-_COUNT]
        if data[:_COUNT] == data[-_COUNT:]:
            break  # else it was written while we read
    return total, last


def screenful(last: bytes) -> bytes:
    """The last lines of it, from the start of a line if there are lines enough to choose from."""
    start = len(last)
    for _ in range(LINES):
        newline = last.rfind(b"\n", 0, max(start - 1, 0))
        if newline < 0:
            # Cut somewhere, perhaps within a character: from the first line on, if there is any.
            return last[last.find(b"\n") + 1 :] if len(last) >= LARGEST else last
        start = newline + 1
    return last[start:]


def before(last: bytes, fresh: bytes, largest: int) -> bytes:
    """`last` without its end, where that is the start of `fresh` too. At most `largest` bytes can be common to both."""
    for common in range(min(len(last), len(fresh), largest), 0, -1):
        if last.endswith(fresh[:common]):
            return last[:-common]
    return last
