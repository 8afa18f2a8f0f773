"""Disks that another QEMU has locked; the locks are taken as QEMU takes them."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from launcher.storage import qemu_locks

CONSISTENT_READ, WRITE = 0, 1
USED, NOT_SHARED = 100, 200


def claim(path: pathlib.Path, writes: bool = True, shares: bool = False, volume: str = "b") -> dict[str, Any]:
    return {"volume": volume, "claim": f"claim-{volume}", "path": str(path), "writes": writes, "shares": shares}


@contextlib.contextmanager
def holding(path: pathlib.Path, *lock_bytes: int) -> Iterator[None]:
    """Read locks of an open file description of its own, like another process has."""
    with path.open("rb") as file:
        for byte in lock_bytes:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        yield


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


WRITER = (USED + CONSISTENT_READ, USED + WRITE, NOT_SHARED + WRITE)
READER = (USED + CONSISTENT_READ, NOT_SHARED + WRITE)
SHARING_WRITER = (USED + CONSISTENT_READ, USED + WRITE)


@pytest.mark.parametrize(
    ("others", "writes", "shares", "conflict"),
    [
        (WRITER, True, False, True),
        (WRITER, False, False, True),
        (WRITER, True, True, True),
        (READER, True, False, True),
        (READER, False, False, False),
        (SHARING_WRITER, True, True, False),
        (SHARING_WRITER, True, False, True),
        ((), True, False, False),
    ],
)
def test_conflicts_of_permissions(
    disk: pathlib.Path, others: tuple[int, ...], writes: bool, shares: bool, conflict: bool
) -> None:
    with holding(disk, *others):
        assert bool(qemu_locks.locked([claim(disk, writes, shares)])) == conflict
    assert not qemu_locks.locked([claim(disk)])


def test_only_locked_disks_are_named(disk: pathlib.Path, tmp_path: pathlib.Path) -> None:
    free = tmp_path / "free.img"
    free.write_bytes(bytes(512))
    with holding(disk, *WRITER):
        found = qemu_locks.locked([claim(free, volume="a"), claim(disk), claim(tmp_path / "absent", volume="c")])
    assert [each["volume"] for each in found] == ["b"]
    assert qemu_locks.in_use(found) == (
        "volume b: claim claim-b is in use by another virtual machine or pod, which holds QEMU's lock on it: stop that "
        "one first, or give each its own claim"
    )


@pytest.mark.skipif(not shutil.which("qemu-io"), reason="needs QEMU's tools")
def test_locks_of_qemu_itself(disk: pathlib.Path) -> None:
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write("read 0 512\n")
        other.stdin.flush()
        assert "read 512" in other.stdout.readline()
        assert qemu_locks.locked([claim(disk)])
        other.stdin.close()
    assert not qemu_locks.locked([claim(disk)])
