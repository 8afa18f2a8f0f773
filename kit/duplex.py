"""Two directions of one stream."""

import asyncio
from collections.abc import Coroutine
from typing import Any

TAKEN = (("hyperlet-taken", "1"),)
"""Initial metadata of a stream that its server has opened: the first message may be long in coming. One that is refused
has none."""


async def until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Runs them all; the end of one is the end of the others. Raises what made the first end."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
