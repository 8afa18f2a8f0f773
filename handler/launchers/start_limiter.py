"""Limits concurrent VM starts: on few CPUs, staggered starts let the first VMs become ready early."""

import asyncio
import os
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

COUNT = max(2, os.cpu_count() or 2)
SECONDS = 3.0


class StartSlot:
    """A granted slot, held until `end` or until its time is over."""

    def __init__(self, limiter: "StartLimiter", seconds: float) -> None:
        self._start_limiter: StartLimiter | None = limiter
        self._timer = asyncio.get_running_loop().call_later(seconds, self.end)

    def end(self) -> None:
        """Release the slot; no-op if it was released already."""
        limiter, self._start_limiter = self._start_limiter, None
        if limiter is not None:
            self._timer.cancel()
            limiter._release()


class StartLimiter:
    """Grants `count` slots at a time, in order of request, urgent requests first.

    A slot expires after `seconds` although its work continues: a launcher that never responds must not block
    others.
    """

    def __init__(self, count: int = COUNT, seconds: float = SECONDS) -> None:
        self._free = count
        self._seconds = seconds
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._patient: deque[asyncio.Future[None]] = deque()

    async def slot(self, urgent: bool = False) -> StartSlot:
        """Wait for a slot; the caller must end it."""
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
        """Run the coroutine in an urgent slot. Cancelling the caller cancels the coroutine."""
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
