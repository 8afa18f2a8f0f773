"""Writes initramfs archives: cpio "newc" (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

Unlike the cpio program it needs no root for device nodes, and the same tree gives the same bytes.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field


@dataclass
class CpioArchive:
    """Entries in the order they are added. A file's folders are added automatically."""

    chunks: list[bytes] = field(default_factory=list)
    _inode: int = 0
    _folders: set[str] = field(default_factory=set)

    def _entry(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        numbers = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % number for number in numbers) + encoded
        self.chunks += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]

    def folder(self, name: str, mode: int = 0o755) -> None:
        name = name.strip("/")
        if not name or name in self._folders:
            return
        if "/" in name:
            self.folder(name.rpartition("/")[0])
        self._folders.add(name)
        self._entry(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        name = name.strip("/")
        self.folder(name.rpartition("/")[0])
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        name = name.strip("/")
        self.folder(name.rpartition("/")[0])
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        name = name.strip("/")
        self.folder(name.rpartition("/")[0])
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def to_bytes(self) -> bytes:
        """The whole archive, with its trailer, padded to 512 bytes."""
        trailer = CpioArchive()
        trailer._entry("TRAILER!!!", 0)
        data = b"".join([*self.chunks, *trailer.chunks])
        return data + bytes(-len(data) % 512)
