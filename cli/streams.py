"""Copying of bytes between a WebSocket and a local stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable

import aiohttp

from kit.tasks import running

CHUNK = 64 << 10
NO_CODE = 1005
"""The close code of a close frame without a code."""
GRACE_SECONDS = 10.0
"""After the local side has closed: how long the remote side may stay silent before the stream is closed."""

Write = Callable[[bytes], Awaitable[None]]


class StreamClosed(Exception):
    """The remote side closed the stream with an error. `code` is the WebSocket close code (RFC 6455, 7.4.1)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


async def outgoing(source: AsyncIterable[bytes], socket: aiohttp.ClientWebSocketResponse) -> bool:
    """Sends everything from a source, with backpressure. Returns False when the connection is lost."""
    async for data in source:
        try:
            await socket.send_bytes(data)
        except (aiohttp.ClientConnectionError, ConnectionError):
            return False  # the reader gets the reason
    return True


async def incoming(socket: aiohttp.ClientWebSocketResponse, write: Write) -> str:
    """Writes received data until the server closes; returns the close reason. Raises StreamClosed on an error."""
    while True:
        message = await socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            await write(message.data)
        elif message.type is aiohttp.WSMsgType.TEXT:
            await write(message.data.encode())
        elif message.type is aiohttp.WSMsgType.CLOSE:
            code, reason = message.data or NO_CODE, message.extra or ""
            if code in (aiohttp.WSCloseCode.OK, NO_CODE):
                return reason
            raise StreamClosed(code, reason)
        else:
            # No close frame: the connection was lost, or a ping timed out.
            raise StreamClosed(aiohttp.WSCloseCode.ABNORMAL_CLOSURE, "")


async def both_ways(source: AsyncIterable[bytes], socket: aiohttp.ClientWebSocketResponse, write: Write) -> str:
    """Copies both directions until the server closes, or is silent after the source's end. Returns its reason.

    Raises StreamClosed, and the exceptions of `source` and `write`.
    """
    last = asyncio.get_running_loop().time()

    async def noted(data: bytes) -> None:
        nonlocal last
        await write(data)
        last = asyncio.get_running_loop().time()

    async with running(outgoing(source, socket), incoming(socket, noted)) as (sending, receiving):
        await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
        last = asyncio.get_running_loop().time()
        while not receiving.done():
            sending.result()
            left = last + GRACE_SECONDS - asyncio.get_running_loop().time()
            if left <= 0:
                return ""
            await asyncio.wait((receiving,), timeout=left)
        reason: str = receiving.result()
        return reason


async def pieces(reader: asyncio.StreamReader) -> AsyncIterable[bytes]:
    """Chunks read from a local socket."""
    while data := await reader.read(CHUNK):
        yield data
