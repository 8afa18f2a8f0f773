"""Request bodies: read within a deadline, and of all that come at once no more than fits into memory.

Whoever reaches the port may send one before anybody knows who that is: the API server shows webhooks no certificate.
"""

import asyncio
from collections import Counter

from aiohttp import web

BODY_SECONDS = 10.0
"""For a whole body: the API server gives a webhook as long for all it does."""
FREE = 64 << 10
"""Bytes that each may have without being counted: as much as aiohttp reads ahead."""
EACH, ALL = 16 << 20, 64 << 20
"""Bytes of larger bodies in memory: of one address, and of all."""


class RequestBodies:
    """The bodies that are being read."""

    def __init__(self, each: int = EACH, total: int = ALL, seconds: float = BODY_SECONDS) -> None:
        self._most, self._total, self._seconds = each, total, seconds
        self._held = Counter[str]()

    async def read(self, request: web.Request, limit: int) -> bytes:
        """The body of at most `limit` bytes. Raises aiohttp's 408, 413 and 429 with a sentence."""
        if (request.content_length or 0) > limit:
            raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0)
        address, kept = request.remote or "", bytearray()
        held = 0
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in request.content.iter_any():
                    kept += chunk
                    if len(kept) > limit:
                        raise web.HTTPRequestEntityTooLarge(limit, len(kept))
                    if len(kept) > FREE + held:
                        self._take(address, len(kept) - held)
                        held = len(kept)
        except TimeoutError:
            words = f"the request body was not received within {self._seconds:g} s\n"
            raise web.HTTPRequestTimeout(text=words, headers={"Connection": "close"}) from None
        finally:
            self._held[address] -= held
            if not self._held[address]:
                del self._held[address]
        return bytes(kept)

    def _take(self, address: str, size: int) -> None:
        if self._held[address] + size > self._most or self._held.total() + size > self._total:
            raise web.HTTPTooManyRequests(text="too many large request bodies: try again\n")
        self._held[address] += size
