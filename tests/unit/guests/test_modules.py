"""Kernel modules of the guest."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from guests.modules import choose, index, missing, modinfo


def module_file(*pairs: str) -> bytes:
    """The smallest ELF file with a .modinfo section."""
    info = b"".join(pair.encode() + b"\0" for pair in pairs)
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(info) + len(names)
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    )

    def section(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)

    sections = bytes(64) + section(1, 64, len(info)) + section(10, 64 + len(info), len(names))
    return header + info + names + sections


def test_modinfo_reads_all_pairs() -> None:
    image = module_file("alias=pci:v1*", "alias=virtio:d1", "depends=a,b")
    assert modinfo(image) == [("alias", "pci:v1*"), ("alias", "virtio:d1"), ("depends", "a,b")]


@pytest.mark.parametrize("image", [b"", b"\x7fELF\x01\x01", b"MZ" * 100])
def test_modinfo_refuses_other_files(image: bytes) -> None:
    with pytest.raises(ValueError, match="not a 64-bit ELF file"):
        modinfo(image)


def test_modules_are_in_load_order_without_missing_ones(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/card-x.ko").write_bytes(module_file("depends=bus-core,helper", "alias=pci:v1d2*", "alias=card"))
    (tmp_path / "bus-core.ko").write_bytes(module_file("depends="))
    (tmp_path / "helper.ko").write_bytes(module_file("depends=bus-core"))
    (tmp_path / "unwanted.ko").write_bytes(module_file("depends="))
    modules = choose(tmp_path, ("card_x", "built_in"))
    assert [m.name for m in modules] == ["bus_core", "helper", "card_x"]
    assert index(modules).splitlines()[2] == "card_x\t/lib/modules/card_x.ko\tbus_core,helper\tpci:v1d2*"


def test_needed_module_is_found_built_in_or_reported(tmp_path: Path) -> None:
    (tmp_path / "6.1/drivers").mkdir(parents=True)
    (tmp_path / "6.1/drivers/card-x.ko").write_bytes(module_file("depends="))
    (tmp_path / "6.1/modules.builtin").write_text("kernel/drivers/ata/libata-core.ko\nkernel/fs/ext4.ko\n")
    assert missing(tmp_path, ("card_x", "libata_core", "ext4", "ahci")) == ["ahci"]
