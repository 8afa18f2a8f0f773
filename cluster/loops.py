"""Loop devices, which belong to the whole machine: detaches those that a node leaves behind.

A node's mounts end with the node, and so do the loop devices under them. A loop device that was given to a pod as a
device stays, as does the one with which the kubelet holds a pod's device.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster import paths

STORAGE = paths.RUN / "storage"
"""The data of the test cluster's CSI driver; every node sees it at /var/lib/storage."""

# linux/loop.h
_GET_STATUS64 = 0x4C05
_CLR_FD = 0x4C01
_INFO64 = struct.Struct("=QQQ208x")
"""struct loop_info64 up to lo_rdevice; the rest is not needed."""

_LOOP_MAJOR = 7


@dataclass(frozen=True)
class LoopDevice:
    """A loop device: its number and its backing file. `device` and `inode` are those of stat(2), `backing` is the
    device number if it is backed by a block device."""

    number: int
    device: int
    inode: int
    backing: int = 0


def parse(number: int, info: bytes) -> LoopDevice:
    """A struct loop_info64."""
    return LoopDevice(number, *_INFO64.unpack(info))


def attached() -> Iterator[LoopDevice]:
    """All attached loop devices."""
    for entry in Path("/sys/block").glob("loop*/loop"):
        number = int(entry.parent.name.removeprefix("loop"))
        with suppress(OSError), Path(f"/dev/loop{number}").open("rb") as stream:
            yield parse(number, fcntl.ioctl(stream, _GET_STATUS64, bytes(_INFO64.size)))


def stacked(loops: list[LoopDevice], chosen: Callable[[LoopDevice], bool]) -> list[LoopDevice]:
    """The chosen devices and those backed by them, the upper ones first."""
    found = [loop for loop in loops if chosen(loop)]
    for loop in found:
        number = os.makedev(_LOOP_MAJOR, loop.number)
        found += [upper for upper in loops if upper.backing == number and upper not in found]
    return found[::-1]


def detach(chosen: Callable[[LoopDevice], bool]) -> int:
    """Detach the chosen loop devices and those backed by them; returns their number. One in use is detached later."""
    found = stacked(list(attached()), chosen)
    for loop in found:
        with suppress(OSError), Path(f"/dev/loop{loop.number}").open("rb") as stream:
            fcntl.ioctl(stream, _CLR_FD)
    return len(found)


def detach_files(folder: Path) -> int:
    """Detach the loop devices on files below a folder; returns their number."""
    status = [path.stat() for path in folder.rglob("data") if path.is_file()]
    files = {(each.st_dev, each.st_ino) for each in status}
    return detach(lambda loop: (loop.device, loop.inode) in files) if files else 0
