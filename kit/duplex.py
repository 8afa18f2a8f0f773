"""Helpers for bidirectional gRPC streams."""

import asyncio
from collections.abc import Coroutine
from typing import Any

TAKEN = (("hyperlet-taken", "1"),)
"""Initial metadata that a server sends when it has accepted a stream, as the first message may come much later. A
refused stream has none."""


async def until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Runs the coroutines until one ends, then cancels the others. Raises the first one's exception."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
