"""One after the other instead of all at once: where there is little processor, that lets the first be ready early."""

import asyncio
import os
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

COUNT = max(2, os.cpu_count() or 2)
SECONDS = 3.0


class StartSlot:
    """Somebody's turn, until `end` or until its time is over."""

    def __init__(self, limiter: "StartLimiter", seconds: float) -> None:
        self._start_limiter: StartLimiter | None = limiter
        self._timer = asyncio.get_running_loop().call_later(seconds, self.end)

    def end(self) -> None:
        """Gives the turn to the next. It may have ended already."""
        limiter, self._start_limiter = self._start_limiter, None
        if limiter is not None:
            self._timer.cancel()
            limiter._release()


class StartLimiter:
    """Lets `count` works go at a time, in the order they came, those that are urgent before the others.

    A work that takes longer than `seconds` goes on, but its turn is over: a launcher that never answers must not hold
    up the others.
    """

    def __init__(self, count: int = COUNT, seconds: float = SECONDS) -> None:
        self._free = count
        self._seconds = seconds
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._patient: deque[asyncio.Future[None]] = deque()

    async def slot(self, urgent: bool = False) -> StartSlot:
        """Waits for a turn, which the caller ends."""
        if self._free:
            self._free -= 1
        else:
            called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            (self._urgent if urgent else self._patient).append(called)
            try:
                await called
            except BaseException:
                if called.done() and not called.cancelled():
                    self._release()
                raise
        return StartSlot(self, self._seconds)

    async def take(self, work: Coroutine[Any, Any, T]) -> T:
        """The work's result, after waiting for an urgent turn. Cancelling the caller cancels the work."""
        try:
            slot = await self.slot(urgent=True)
        except BaseException:
            work.close()
            raise
        try:
            return await work
        finally:
            slot.end()

    def _release(self) -> None:
        for waiting in (self._urgent, self._patient):
            while waiting:
                called = waiting.popleft()
                if not called.done():
                    called.set_result(None)
                    return
        self._free += 1
