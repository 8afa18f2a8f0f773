"""Checks of disks on claims."""

from typing import BinaryIO

from launcher.storage.untrusted_files import Missing

SECTOR = 512
_IMAGES = {b"QFI\xfb": "a qcow2 image", b"KDMV": "a VMDK image", b"vhdx": "a VHDX image", b"QED\0": "a QED image"}
"""Formats that are never intended on a raw disk. Others, such as LUKS or an archive, may be legitimate."""
_QCOW2_BACKING = slice(8, 16)
"""Offset of the backing file's name; 0: none. Source: QEMU, docs/interop/qcow2.rst."""


def checked(file: BinaryIO, what: str) -> None:
    """Raises Missing for an image file: attached as a raw disk, its headers would be visible to the guest."""
    start = file.read(16)
    file.seek(0)
    kind = next((kind for magic, kind in _IMAGES.items() if start.startswith(magic)), None)
    if kind is None:
        return
    if kind.endswith("qcow2 image") and any(start[_QCOW2_BACKING]):
        kind += " with a backing file"
    raise Missing(
        f"{what} is {kind}, but a claim must hold a raw disk: convert it with `qemu-img convert -O raw`, or use a "
        "containerDisk"
    )


def whole_sectors(size: int, what: str) -> None:
    """Raises Missing for a size that is not a multiple of the sector size."""
    if size % SECTOR:
        raise Missing(
            f"{what} has {size} bytes, which is not a multiple of {SECTOR}: make it {-(-size // SECTOR) * SECTOR} "
            "bytes long (`truncate`)"
        )
