"""Bootable disks."""

from __future__ import annotations

import struct

import pytest

from guests.disk import halting_disk, master_boot_record


def test_halt_disk_is_one_bootable_mebibyte() -> None:
    disk = halting_disk()
    assert len(disk) == 1024 * 1024
    assert disk[:4] == b"\xfa\xf4\xeb\xfd"  # cli, hlt, jmp back to the hlt: 0xfd is -3 from the end of the jmp
    assert disk[510:512] == b"\x55\xaa"


def test_master_boot_record_has_one_active_partition() -> None:
    record = master_boot_record(b"\x90" * 440, 2048, 4096)
    assert len(record) == 512
    assert record[446] == 0x80
    assert struct.unpack_from("<II", record, 454) == (2048, 4096)
    assert record[462:510] == bytes(48)
    with pytest.raises(ValueError, match="does not fit"):
        master_boot_record(b"\x90" * 441, 2048, 4096)
