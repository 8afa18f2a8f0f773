"""Errors of disks on claims, with volume and claim in the message. Pure but for `checked`."""

import re
from collections.abc import Mapping
from typing import BinaryIO

from launcher.storage.untrusted_files import Missing

SECTOR = 512
_IMAGES = {b"QFI\xfb": "a qcow2 image", b"KDMV": "a VMDK image", b"vhdx": "a VHDX image", b"QED\0": "a QED image"}
"""Formats that are never intended on a raw disk. Others, such as LUKS or an archive, may be legitimate."""
_LOCK = re.compile(r'Failed to get "?(?:shared )?"?(?:write|consistent read|resize)"? lock')
_PATH = re.compile(r"/volumes/([a-z0-9][-a-z0-9.]{0,252})")
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


def in_use(words: str, claims: Mapping[str, str]) -> str | None:
    """Message for QEMU's lock error that names volume and claim; None for any other error.

    `claims`: the name of each volume's claim.
    """
    if not _LOCK.search(words):
        return None
    named = [volume for volume in _PATH.findall(words) if volume in claims] or list(claims)
    shown = " or ".join(f"volume {volume}: claim {claims[volume]}" for volume in dict.fromkeys(named))
    return (
        f"{shown or 'a disk'} is in use by another virtual machine or pod, which holds QEMU's lock on it: stop that "
        "one first, or give each its own claim"
    )
