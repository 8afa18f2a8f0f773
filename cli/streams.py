"""Bytes between a WebSocket and something local."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable

import aiohttp

CHUNK = 64 << 10
NO_CODE = 1005
"""The close code that stands for a close frame without one."""
GRACE_SECONDS = 10.0
"""How long the far side may go on sending, from its last byte, after the near side said that it will send no more."""

Write = Callable[[bytes], Awaitable[None]]


class StreamClosed(Exception):
    """The stream's other end closed it with an error. `code` is the WebSocket's (RFC 6455, 7.4.1)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


async def outgoing(source: AsyncIterable[bytes], socket: aiohttp.ClientWebSocketResponse) -> bool:
    """Sends everything that a source gives, as fast as the network takes it. False: the connection is gone."""
    async for data in source:
        try:
            await socket.send_bytes(data)
        except (aiohttp.ClientConnectionError, ConnectionError):
            return False  # the reading side hears why
    return True


async def incoming(socket: aiohttp.ClientWebSocketResponse, write: Write) -> str:
    """Writes everything that arrives, until the server closes; returns its reason. Raises StreamClosed for a bad
    end."""
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
            # No word of farewell: the connection broke, or the ping was not answered.
            raise StreamClosed(aiohttp.WSCloseCode.ABNORMAL_CLOSURE, "")


async def both_ways(source: AsyncIterable[bytes], socket: aiohttp.ClientWebSocketResponse, write: Write) -> str:
    """Carries both directions until the server closes, or falls silent after the source's end. Returns its reason."""
    last = asyncio.get_running_loop().time()

    async def noted(data: bytes) -> None:
        nonlocal last
        await write(data)
        last = asyncio.get_running_loop().time()

    sending = asyncio.create_task(outgoing(source, socket))
    receiving = asyncio.create_task(incoming(socket, noted))
    try:
        await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
        last = asyncio.get_running_loop().time()
        while not receiving.done():
            left = last + GRACE_SECONDS - asyncio.get_running_loop().time()
            if left <= 0:
                return ""
            await asyncio.wait((receiving,), timeout=left)
        return await receiving
    finally:
        for task in (sending, receiving):
            task.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)


async def pieces(reader: asyncio.StreamReader) -> AsyncIterable[bytes]:
    """What a local socket sends, in pieces."""
    while data := await reader.read(CHUNK):
        yield data
