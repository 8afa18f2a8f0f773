"""Which loop devices are detached: those on a node's volumes, and those backed by them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from cluster import loops
from cluster.loops import LoopDevice

FILE = LoopDevice(0, device=0xFE00, inode=17)
ON_IT = LoopDevice(3, device=0x2A, inode=5, backing=os.makedev(7, 0))
ON_THAT = LoopDevice(300, device=0x2A, inode=6, backing=os.makedev(7, 3))
ON_300 = LoopDevice(4, device=0x2A, inode=7, backing=os.makedev(7, 300))
OTHER = LoopDevice(1, device=0xFE00, inode=18)
ALL = [OTHER, ON_300, FILE, ON_THAT, ON_IT]


def test_loop_info_is_parsed() -> None:
    info = struct.pack("=QQQQQIIII64s64s32sQQ", 0xFE00, 17, os.makedev(7, 300), 0, 0, 3, 0, 0, 0, b"x", b"", b"", 0, 0)
    assert len(info) == 232, "struct loop_info64"
    assert loops.parse(3, info) == LoopDevice(3, 0xFE00, 17, os.makedev(7, 300))


def test_stacked_loop_devices_are_detached_top_down() -> None:
    assert loops.stacked(ALL, lambda loop: loop.inode == 17) == [ON_300, ON_THAT, ON_IT, FILE]


def test_other_loop_devices_are_not_detached() -> None:
    assert loops.stacked(ALL, lambda loop: loop.inode == 18) == [OTHER]
    assert loops.stacked(ALL, lambda loop: loop.device is None) == []


def test_folder_without_volumes_has_no_loop_devices(tmp_path: Path) -> None:
    assert loops.detach_files(tmp_path / "missing") == 0
    (tmp_path / "data").mkdir()
    assert loops.detach_files(tmp_path) == 0, "a directory is under no loop device"
