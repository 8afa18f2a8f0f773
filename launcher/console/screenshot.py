"""Screenshots of the guest as PNG. Imported with the first screenshot."""

import asyncio
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from launcher.hypervisor.connection import HypervisorError
from launcher.paths import Paths
from launcher.vm.controller import VmController
from launcher.vm.errors import OperationRefused
from protos import limits

_PNG = b"\x89PNG\r\n\x1a\n"
_SIDE = 16384
_SHRINK = (1, 2, 4, 8, 16)


class Screenshotter:
    """Takes screenshots, one at a time."""

    def __init__(self, machine: VmController, paths: Paths, limit: int = limits.REPLY_BYTES) -> None:
        self._machine, self._limit = machine, limit
        self._file = Path(paths.screen)
        self._turn = asyncio.Lock()

    async def png(self) -> bytes:
        """The current screen as PNG, scaled down if larger than the limit. Raises OperationRefused, HypervisorError."""
        async with self._turn:
            domain = self._machine.running()
            if not self._machine.has_screen:
                raise OperationRefused("FAILED_PRECONDITION", "the virtual machine has no screen")
            mime, data = await self._machine.hypervisor.screenshot(domain, self._limit)
            return data if mime == "image/png" and data else await self._small(domain)

    async def _small(self, domain: str) -> bytes:
        """Convert through a file, so that the server never holds the whole image in memory."""
        try:
            await self._machine.hypervisor.dump_screen(domain, str(self._file))
            return await asyncio.to_thread(self._convert)
        except (OSError, ValueError) as error:
            raise HypervisorError(f"cannot read the screen dump: {error}") from error
        finally:
            self._file.unlink(missing_ok=True)

    def _convert(self) -> bytes:
        for shrink in _SHRINK:
            with self._file.open("rb") as file:
                data = from_ppm(file, shrink, self._limit)
            if data:
                return data
        raise ValueError(f"the PNG would be larger than {self._limit} bytes")


def from_ppm(file: BinaryIO, shrink: int, limit: int) -> bytes:
    """A PNG of every `shrink`th pixel and row of a PPM (P6, 8 bits); empty if larger than `limit` bytes.

    Raises ValueError for other formats. Sources: PNG specification (RFC 2083), ppm(5) of Netpbm.
    """
    width, height = _size(file)
    columns, rows = -(-width // shrink), -(-height // shrink)
    packer, packed = zlib.compressobj(6), bytearray()
    for number in range(height):
        row = file.read(3 * width)
        if len(row) < 3 * width:
            raise ValueError("the PPM image is truncated")
        if number % shrink == 0:
            packed += packer.compress(b"\0" + _every(row, shrink, columns))
        if len(packed) > limit:
            return b""
    packed += packer.flush()
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    png = _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", bytes(packed)) + _chunk(b"IEND", b"")
    return png if len(png) <= limit else b""


def _size(file: BinaryIO) -> tuple[int, int]:
    head = b""
    while len(head.split()) < 4 or not head[-1:].isspace():
        byte = file.read(1)
        if not byte or len(head) > 64:
            raise ValueError("not a PPM image")
        head += byte
    magic, width, height, depth = head.split()
    if magic != b"P6" or depth != b"255":
        raise ValueError("not an 8-bit PPM image")
    sides = int(width), int(height)
    if not all(0 < side <= _SIDE for side in sides):
        raise ValueError(f"unsupported image size: {sides[0]} by {sides[1]} pixels")
    return sides


def _every(row: bytes, shrink: int, columns: int) -> bytes:
    if shrink == 1:
        return row
    out = bytearray(3 * columns)
    for colour in range(3):
        out[colour::3] = row[colour :: 3 * shrink]
    return bytes(out)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
