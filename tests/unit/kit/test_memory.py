import gc
import hashlib
import os
import pathlib

from kit.memory import release_code_pages, settle


def resident_code() -> int:
    """KiB of executable file mappings that are mapped in."""
    total, code = 0, False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            code = " r-xp " in line and "/" in line
        elif code and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_code_comes_back_when_it_is_needed() -> None:
    before, digest = resident_code(), hashlib.sha256(b"x").hexdigest()
    release_code_pages()
    assert resident_code() < before
    assert hashlib.sha256(b"x").hexdigest() == digest


def anonymous() -> int:
    """KiB of memory of our own."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


def test_what_only_the_start_needed_is_given_back() -> None:
    """In a child, since what it freezes stays frozen."""
    pid = os.fork()
    if pid == 0:
        # Each smaller than what malloc would map by itself, with one on top that keeps the heap from shrinking.
        pieces = [bytes(60_000) for _ in range(500)]
        kept = bytes(60_000)
        code = resident_code()
        pieces.clear()
        before = anonymous()
        settle()
        os._exit(
            0 if anonymous() < before - 20_000 and resident_code() < code and gc.get_freeze_count() and kept else 1
        )
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
