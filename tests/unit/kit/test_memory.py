import hashlib
import pathlib

from kit.memory import release_code_pages


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
