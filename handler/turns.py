"""One after the other instead of all at once: where there is little processor, that lets the first be ready early."""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

COUNT = max(2, os.cpu_count() or 2)
SECONDS = 3.0


class Turns:
    """Lets `count` works go at a time, in the order they came.

    A work that takes longer than `seconds` goes on, but its turn is over: a launcher that never answers must not hold
    up the others.
    """

    def __init__(self, count: int = COUNT, seconds: float = SECONDS) -> None:
        self._free = asyncio.Semaphore(count)
        self._seconds = seconds

    async def take(self, work: Coroutine[Any, Any, T]) -> T:
        """The work's result, after waiting for a turn. Cancelling the caller cancels the work."""
        try:
            await self._free.acquire()
        except BaseException:
            work.close()
            raise
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task}, timeout=self._seconds)
        except BaseException:
            task.cancel()
            raise
        finally:
            self._free.release()
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            raise
