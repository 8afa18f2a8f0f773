"""Releases memory that only the start of a process needed: pages of its program that are not used again."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

# linux/mman.h, and the number of process_madvise(2), the same on every architecture
_MADV_PAGEOUT = 21
_SYS_PROCESS_MADVISE = 440


class _Piece(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def program_pieces(maps: str, program: str) -> Iterator[tuple[int, int]]:
    """Address and length of the read-only mappings of a program's file, from /proc/PID/maps."""
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].rsplit("/", 1)[-1] == program and fields[1][1] == "-":
            start, end = (int(text, 16) for text in fields[0].split("-"))
            yield start, end - start


def page_out(pid: int) -> int:
    """Have the kernel drop a process's program pages; returns the bytes requested. Used pages are read again.

    A process that has ended, or a kernel without this call (before 5.10), is not an error.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    total = 0
    try:
        program = Path(f"/proc/{pid}/exe").readlink().name
        pieces = list(program_pieces(Path(f"/proc/{pid}/maps").read_text(), program))
        handle = os.pidfd_open(pid)
    except OSError:
        return 0
    try:
        for base, length in pieces:
            piece = _Piece(base, length)
            done = libc.syscall(_SYS_PROCESS_MADVISE, handle, ctypes.byref(piece), 1, _MADV_PAGEOUT, 0)
            total += max(0, done)
    finally:
        os.close(handle)
    return total
