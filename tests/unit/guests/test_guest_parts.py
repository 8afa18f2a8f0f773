"""The guest's parts that need no build: cpio archive, module index, boot sectors."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from guests.cpio import Archive
from guests.disk import halting_disk, master_boot_record
from guests.modules import choose, index, missing, modinfo


def entries(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """A reader of cpio newc: name → mode, content, device."""
    found = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        body = (at + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], data[body : body + fields[6]], (fields[9], fields[10]))
        at = (body + fields[6] + 3) & ~3


def test_cpio_holds_what_was_added_with_folders_first() -> None:
    archive = Archive()
    archive.file("/a/b/file", b"12345", 0o755)
    archive.link("a/link", "b/file")
    archive.character_device("dev/console", 5, 1)
    found = entries(archive.to_bytes())
    assert list(found) == ["a", "a/b", "a/b/file", "a/link", "dev", "dev/console"]
    assert found["a/b/file"] == (0o100755, b"12345", (0, 0))
    assert found["a/link"] == (0o120777, b"b/file", (0, 0))
    assert found["dev/console"] == (0o020600, b"", (5, 1))


def test_cpio_of_the_same_entries_is_the_same() -> None:
    archives = [Archive(), Archive()]
    for archive in archives:
        archive.file("x", b"y")
    assert archives[0].to_bytes() == archives[1].to_bytes()
    assert len(archives[0].to_bytes()) % 512 == 0


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


def test_modules_come_after_what_they_need_and_absent_ones_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/card-x.ko").write_bytes(module_file("depends=bus-core,helper", "alias=pci:v1d2*", "alias=card"))
    (tmp_path / "bus-core.ko").write_bytes(module_file("depends="))
    (tmp_path / "helper.ko").write_bytes(module_file("depends=bus-core"))
    (tmp_path / "unwanted.ko").write_bytes(module_file("depends="))
    modules = choose(tmp_path, ("card_x", "built_in"))
    assert [m.name for m in modules] == ["bus_core", "helper", "card_x"]
    assert index(modules).splitlines()[2] == "card_x\t/lib/modules/card_x.ko\tbus_core,helper\tpci:v1d2*"


def test_a_module_that_a_test_needs_is_there_built_in_or_missed(tmp_path: Path) -> None:
    (tmp_path / "6.1/drivers").mkdir(parents=True)
    (tmp_path / "6.1/drivers/card-x.ko").write_bytes(module_file("depends="))
    (tmp_path / "6.1/modules.builtin").write_text("kernel/drivers/ata/libata-core.ko\nkernel/fs/ext4.ko\n")
    assert missing(tmp_path, ("card_x", "libata_core", "ext4", "ahci")) == ["ahci"]


def test_the_halting_disk_is_one_mebibyte_that_bios_boots() -> None:
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
