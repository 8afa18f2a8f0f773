"""The tail of the guest's serial output, replayed to the next console client.

The supervisor writes it to a small file while it drains the log; the server reads the file when a client attaches. It
survives a restart of the server, and costs nothing for a VM without output.
Standard library only, with few imports: the supervisor imports this module.
"""

import os

LARGEST = 8 << 10
"""Bytes that are kept."""
LINES = 24
_COUNT = 8
_TRIES = 5


class SerialTail:
    """The writer. File format: total byte count, the last bytes, the same count again."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._last = bytearray()
        self._total = 0
        self._saved = 0

    def feed(self, data: bytes) -> None:
        """Add output; `save` writes it."""
        self._total += len(data)
        self._last += data[-LARGEST:]
        del self._last[:-LARGEST]

    def save(self) -> None:
        """Write the file if there is new output. A full disk only affects the replay."""
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
    """Total bytes the guest has printed, and the last of them; (0, b"") without a file."""
    total, last = 0, b""
    for _ in range(_TRIES):
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                data = file.read(LARGEST + 2 * _COUNT)
        except OSError:
            return 0, b""
        total, last = int.from_bytes(data[:_COUNT], "little"), data[_COUNT:-_COUNT]
        if data[:_COUNT] == data[-_COUNT:]:
            break  # else the file was written during the read
    return total, last


def screenful(last: bytes) -> bytes:
    """The last LINES lines, starting at the beginning of a line if possible."""
    start = len(last)
    for _ in range(LINES):
        newline = last.rfind(b"\n", 0, max(start - 1, 0))
        if newline < 0:
            # Truncated, perhaps within a character: start with the first complete line, if any.
            return last[last.find(b"\n") + 1 :] if len(last) >= LARGEST else last
        start = newline + 1
    return last[start:]


def before(last: bytes, fresh: bytes, largest: int) -> bytes:
    """`last` without the suffix that is also the start of `fresh`. The overlap is at most `largest` bytes."""
    for common in range(min(len(last), len(fresh), largest), 0, -1):
        if last.endswith(fresh[:common]):
            return last[:-common]
    return last
