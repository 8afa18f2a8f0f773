"""Request bodies, read with a deadline and a limit of total memory.

Bodies come from unauthenticated clients: the API server presents no client certificate to webhooks.
"""

import asyncio
from collections import Counter

from aiohttp import web

BODY_SECONDS = 10.0
"""Timeout for a whole body, equal to the API server's default timeout of a webhook."""
FREE = 64 << 10
"""Bytes per body that are not counted: aiohttp's read-ahead."""
EACH, ALL = 16 << 20, 64 << 20
"""Maximum bytes of larger bodies in memory, per client address and in total."""


class RequestBodies:
    """Accounting of the bodies being read."""

    def __init__(self, each: int = EACH, total: int = ALL, seconds: float = BODY_SECONDS) -> None:
        self._most, self._total, self._seconds = each, total, seconds
        self._held = Counter[str]()

    async def read(self, request: web.Request, limit: int) -> bytes:
        """Reads a body of at most `limit` bytes. Raises aiohttp's 408, 413 and 429."""
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
