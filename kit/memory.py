"""Gives back memory that only the start of a program needed."""

import ctypes
import gc
import pathlib

_MADV_DONTNEED = 4


def settle() -> None:
    """Gives back all of it: garbage, the heap's free pages, the code. To be called when a program has started.

    What is left stays for good, so the garbage collector is told not to look at it again.
    """
    gc.collect()
    gc.freeze()
    # Free pages inside of the heap are kept by free(3), whatever their number (malloc_trim(3), glibc).
    ctypes.CDLL(None).malloc_trim(0)
    release_code_pages()


def release_code_pages() -> None:
    """Unmaps the pages of program code that have been touched so far; those still in use come back on the next call.

    A start runs through most of gRPC's 12 MiB of code, once. Mapped pages are the last that a node short of memory gets
    back, and a VM alone on its node has nobody to share them with. Only executable mappings of files: nothing of ours
    is ever in them, so dropping them loses nothing (madvise(2), MADV_DONTNEED).
    """
    madvise = ctypes.CDLL(None).madvise
    with pathlib.Path("/proc/self/maps").open(encoding="utf-8") as maps:
        ranges = [line.split()[0] for line in maps if " r-xp " in line and "/" in line]
    for text in ranges:
        start, end = (int(number, 16) for number in text.split("-"))
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
