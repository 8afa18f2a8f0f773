"""The cpio archive of the initramfs."""

from __future__ import annotations

from guests.cpio import CpioArchive


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


def test_cpio_has_added_entries_with_folders_first() -> None:
    archive = CpioArchive()
    archive.file("/a/b/file", b"12345", 0o755)
    archive.link("a/link", "b/file")
    archive.character_device("dev/console", 5, 1)
    found = entries(archive.to_bytes())
    assert list(found) == ["a", "a/b", "a/b/file", "a/link", "dev", "dev/console"]
    assert found["a/b/file"] == (0o100755, b"12345", (0, 0))
    assert found["a/link"] == (0o120777, b"b/file", (0, 0))
    assert found["dev/console"] == (0o020600, b"", (5, 1))


def test_cpio_is_reproducible() -> None:
    archives = [CpioArchive(), CpioArchive()]
    for archive in archives:
        archive.file("x", b"y")
    assert archives[0].to_bytes() == archives[1].to_bytes()
    assert len(archives[0].to_bytes()) % 512 == 0
