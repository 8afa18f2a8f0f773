"""Loop devices: the kernel's, one set for the whole machine. Those that a node leaves behind are taken away by us.

A mount of a node ends with the node, and a loop device under a mount with it. One that was given to a pod as it is
stays, as does the one by which the kubelet holds a pod's device.
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
"""What is behind the volumes of the test cluster's CSI driver; every node sees it at /var/lib/storage."""

# linux/loop.h
_GET_STATUS64 = 0x4C05
_CLR_FD = 0x4C01
_INFO64 = struct.Struct("=QQQ208x")
"""struct loop_info64 up to lo_rdevice; the rest does not matter here."""

_LOOP_MAJOR = 7


@dataclass(frozen=True)
class LoopDevice:
    """A loop device: its number, and what it is on. `device` and `inode` are those of stat(2), `backing` is the device
    number where it is on a block device."""

    number: int
    device: int
    inode: int
    backing: int = 0


def parse(number: int, info: bytes) -> LoopDevice:
    """A struct loop_info64."""
    return LoopDevice(number, *_INFO64.unpack(info))


def attached() -> Iterator[LoopDevice]:
    """All loop devices that are on something."""
    for entry in Path("/sys/block").glob("loop*/loop"):
        number = int(entry.parent.name.removeprefix("loop"))
        with suppress(OSError), Path(f"/dev/loop{number}").open("rb") as stream:
            yield parse(number, fcntl.ioctl(stream, _GET_STATUS64, bytes(_INFO64.size)))


def stacked(loops: list[LoopDevice], chosen: Callable[[LoopDevice], bool]) -> list[LoopDevice]:
    """The chosen ones and those that are on them, the upper ones first."""
    found = [loop for loop in loops if chosen(loop)]
    for loop in found:
        number = os.makedev(_LOOP_MAJOR, loop.number)
        found += [upper for upper in loops if upper.backing == number and upper not in found]
    return found[::-1]


def detach(chosen: Callable[[LoopDevice], bool]) -> int:
    """Take away the chosen loop devices, and those on them; how many. One that is in use goes when it is not."""
    found = stacked(list(attached()), chosen)
    for loop in found:
        with suppress(OSError), Path(f"/dev/loop{loop.number}").open("rb") as stream:
            fcntl.ioctl(stream, _CLR_FD)
    return len(found)


def detach_files(folder: Path) -> int:
    """Take away the loop devices on files below a folder; how many."""
    status = [path.stat() for path in folder.rglob("data") if path.is_file()]
    files = {(each.st_dev, each.st_ino) for each in status}
    return detach(lambda loop: (loop.device, loop.inode) in files) if files else 0
