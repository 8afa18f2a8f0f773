import hashlib
import pathlib
import subprocess
import sys

from kit.memory import release_code_pages


def resident_code() -> int:
    """Resident KiB of executable file mappings."""
    total, code = 0, False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            code = " r-xp " in line and "/" in line
        elif code and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_released_code_pages_are_faulted_in_again() -> None:
    before, digest = resident_code(), hashlib.sha256(b"x").hexdigest()
    release_code_pages()
    assert resident_code() < before
    assert hashlib.sha256(b"x").hexdigest() == digest


SETTLING = """
import gc, pathlib
from kit.memory import settle

def anonymous():
    return int(pathlib.Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])

# Each smaller than what malloc would map by itself, with one on top that keeps the heap from shrinking.
pieces = [bytes(60_000) for _ in range(500)]
kept = bytes(60_000)
pieces.clear()
before = anonymous()
settle()
print(before - anonymous(), gc.get_freeze_count())
"""


def test_settle_releases_startup_memory() -> None:
    """Runs in its own process, because gc.freeze() is permanent."""
    done = subprocess.run([sys.executable, "-c", SETTLING], capture_output=True, text=True, check=True)
    freed, frozen = map(int, done.stdout.split())
    assert freed > 20_000 and frozen > 1000
