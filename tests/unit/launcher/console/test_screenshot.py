"""Screenshots: VMs without a screen, PPM to PNG."""

import io
import pathlib
import struct
import zlib

import pytest

from launcher.console.screenshot import Screenshotter, from_ppm
from launcher.paths import Paths
from launcher.vm.errors import OperationRefused


def ppm(width: int, height: int, pixels: bytes) -> io.BytesIO:
    return io.BytesIO(b"P6\n%d %d\n255\n" % (width, height) + pixels)


def decode(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and pixels of a PNG without filters."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        chunks[kind] = png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length)[0] == zlib.crc32(kind + chunks[kind])
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    raw, stride = zlib.decompress(chunks[b"IDAT"]), 3 * width + 1
    rows = [raw[y * stride : (y + 1) * stride] for y in range(height)]
    assert all(row[0] == 0 for row in rows) and len(raw) == stride * height
    return width, height, b"".join(row[1:] for row in rows)


async def test_vm_without_screen_is_refused(tmp_path: pathlib.Path) -> None:
    class Machine:
        has_screen = False

        def running(self) -> str:
            return "domain"

    with pytest.raises(OperationRefused, match="the virtual machine has no screen") as caught:
        await Screenshotter(Machine(), Paths(str(tmp_path))).png()  # type: ignore[arg-type]
    assert caught.value.code == "FAILED_PRECONDITION"


def test_every_pixel_is_there() -> None:
    pixels = bytes(range(5 * 3 * 3))
    assert decode(from_ppm(ppm(5, 3, pixels), 1, 1 << 20)) == (5, 3, pixels)


def test_every_second_pixel() -> None:
    pixels = b"".join(bytes([x, y, 9]) for y in range(5) for x in range(5))
    expected = b"".join(bytes([x, y, 9]) for y in (0, 2, 4) for x in (0, 2, 4))
    assert decode(from_ppm(ppm(5, 5, pixels), 2, 1 << 20)) == (3, 3, expected)


def test_png_over_the_limit_is_empty() -> None:
    import random

    noise = random.Random(1).randbytes(64 * 64 * 3)
    assert from_ppm(ppm(64, 64, noise), 1, 4000) == b""
    assert 0 < len(from_ppm(ppm(64, 64, noise), 4, 4000)) <= 4000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" * 20,
        b"P5\n1 1\n255\n\0",
        b"P6\n2 2\n65535\n" + bytes(24),
        b"P6\n2 2\n255\n" + bytes(11),
        b"P6\n99999 1\n255\n" + bytes(300000),
        b"P6\n0 1\n255\n",
        b"P6\n-1 1\n255\n",
        b"P6\nx y\n255\n",
    ],
)
def test_malformed_ppm_raises_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        from_ppm(io.BytesIO(data), 1, 1 << 20)
