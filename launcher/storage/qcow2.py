"""The part of the qcow2 format needed to check an image and to create an overlay.

Source: QEMU's docs/interop/qcow2.rst. Saves running qemu-img for each disk, and reads only these few fields of
untrusted images outside QEMU.
"""

import struct
from pathlib import Path
from typing import BinaryIO

MAGIC = b"QFI\xfb"
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_L2_REACH = _CLUSTER * (_CLUSTER // 8)
"""Bytes of the guest's disk covered by one entry of the L1 table."""
_BACKING_FORMAT = 0xE2792ACA
_CORRUPT, _EXTERNAL_DATA = 1 << 1, 1 << 2
_LARGEST = 1 << 50


class NoImage(Exception):
    """The file is not a usable disk image; the message is the reason."""


def virtual_size(file: BinaryIO) -> int:
    """The size of the guest's disk in bytes. Raises NoImage, also for images that refer to other files."""
    data = file.read(_V2.size + _V3.size)
    if len(data) < _V2.size:
        raise NoImage("the qcow2 header is truncated")
    fields = _V2.unpack_from(data)
    magic, version, backing, _, cluster_bits, size, crypt, l1_size, l1_offset, refcounts, _, _, _ = fields
    incompatible = 0
    if version == 3:
        if len(data) < _V2.size + _V3.size:
            raise NoImage("the qcow2 header is truncated")
        incompatible = _V3.unpack_from(data, _V2.size)[0]
    if magic != MAGIC or version not in (2, 3) or not 9 <= cluster_bits <= 21 or not 0 < size <= _LARGEST:
        raise NoImage("the qcow2 header is damaged")
    if backing:
        raise NoImage("the qcow2 image has a backing file, which is not allowed")
    if incompatible & _EXTERNAL_DATA:
        raise NoImage("the qcow2 image has an external data file, which is not allowed")
    if crypt:
        raise NoImage("the qcow2 image is encrypted")
    if incompatible & _CORRUPT:
        raise NoImage("the qcow2 image is marked as corrupt")
    length = file.seek(0, 2)
    if not 0 < l1_offset < length or not 0 < refcounts < length or l1_offset + l1_size * 8 > length:
        raise NoImage("the qcow2 image is truncated")
    return int(size)


def create_overlay(path: Path, backing: Path, backing_format: str, size: int) -> None:
    """Create an empty qcow2 image of `size` bytes on top of `backing`. Raises OSError."""
    entries = -(-size // _L2_REACH)
    tables = -(-entries * 8 // _CLUSTER)
    name, kind = str(backing).encode(), backing_format.encode()
    extensions = struct.pack(">II", _BACKING_FORMAT, len(kind)) + kind.ljust(-(-len(kind) // 8) * 8, b"\0") + bytes(8)
    header = _V2.size + _V3.size
    clusters = 3 + tables
    if header + len(extensions) + len(name) > _CLUSTER or clusters * 2 > _CLUSTER or len(name) > 1023:
        raise OSError("the disk is too large, or its path too long, for an overlay")
    with path.open("xb") as file:
        file.write(
            _V2.pack(
                MAGIC,
                3,
                header + len(extensions),
                len(name),
                _CLUSTER_BITS,
                size,
                0,
                entries,
                3 * _CLUSTER,
                _CLUSTER,
                1,
                0,
                0,
            )
        )
        file.write(_V3.pack(0, 0, 0, 4, header) + extensions + name)
        file.seek(_CLUSTER)
        file.write(struct.pack(">Q", 2 * _CLUSTER))
        file.seek(2 * _CLUSTER)
        file.write(struct.pack(">H", 1) * clusters)
        file.truncate(clusters * _CLUSTER)
