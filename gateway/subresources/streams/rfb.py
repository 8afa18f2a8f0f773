"""A minimal RFB client that moves the pointer. Source: RFC 6143, 7.1 to 7.3 and 7.5.5."""

import asyncio
import struct

from gateway.http import status
from gateway.http.websockets import Duplex

VERSION = b"RFB 003.008\n"
_NONE = 1
"""Security type None: access to the launcher's socket is restricted."""
_SHARED = b"\x01"
_POINTER = 5
SECONDS = 5.0


class _Reader:
    """Reads exact numbers of bytes from a stream of chunks."""

    def __init__(self, screen: Duplex) -> None:
        self._screen = screen
        self._rest = b""

    async def take(self, count: int) -> bytes:
        while len(self._rest) < count:
            data = await self._screen.read()
            if data is None:
                raise status.too_large("the VNC server closed the connection")
            self._rest += data
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken


async def wake(screen: Duplex) -> None:
    """Connects as an additional client and moves the pointer by one pixel. Raises StatusError."""
    try:
        async with asyncio.timeout(SECONDS):
            await _join(screen, _Reader(screen))
            for position in (0, 1):
                await screen.write(struct.pack(">BBHH", _POINTER, 0, position, position))
    except TimeoutError:
        raise status.StatusError(504, "Timeout", "the VNC server did not answer in time") from None


async def _join(screen: Duplex, reader: _Reader) -> None:
    greeting = await reader.take(len(VERSION))
    if not greeting.startswith(b"RFB 003."):
        raise status.too_large("the VNC server does not speak RFB")
    await screen.write(VERSION)
    kinds = await reader.take((await reader.take(1))[0])
    if _NONE not in kinds:
        raise status.too_large("the VNC server requires a password")
    await screen.write(bytes([_NONE]))
    if (await reader.take(4)) != bytes(4):
        raise status.too_large("the VNC server refused the connection")
    await screen.write(_SHARED)
    # Size, pixel format and length of the name, all unused.
    await reader.take(24)
