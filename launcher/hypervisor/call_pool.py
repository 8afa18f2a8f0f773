"""Threads for calls of libvirt, which cannot be interrupted. Counts the calls that are stuck.

A call is stuck from its deadline until it returns, whether its caller still waits or not. When `limit` calls are stuck,
the daemon must be restarted: its end makes them return. `limit` is below the number of threads, where other calls must
go on meanwhile.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

PAUSE_SECONDS = 60.0
"""Minimum interval between two restarts. If QEMU hangs, in I/O to a dead storage for example, calls get stuck again."""


class CallPool:
    """`threads` threads. `exhausted` is called with the number of stuck calls when there are `limit` of them."""

    def __init__(self, name: str, threads: int, limit: int, exhausted: Callable[[int], None]) -> None:
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)
        self._limit, self._exhausted = limit, exhausted
        self._loop = asyncio.get_running_loop()
        self._stuck: set[Future[Any]] = set()
        self._quiet_until = 0.0

    async def run(self, function: Callable[..., T], *arguments: object, seconds: float) -> T:
        """Run the function in a thread; without a timeout, but the call counts as stuck after `seconds`."""
        call = self._threads.submit(function, *arguments)
        deadline = self._loop.call_later(seconds, self._late, call)
        call.add_done_callback(lambda _: self._returned(call, deadline))
        return await asyncio.wrap_future(call)

    def _late(self, call: Future[Any]) -> None:
        if call.running():  # else it still waits for a thread
            self._stuck.add(call)
            self._check()

    def _returned(self, call: Future[Any], deadline: asyncio.TimerHandle) -> None:
        """Called in the call's thread, or in the event loop for a call that was cancelled before it began."""

        def forget() -> None:
            deadline.cancel()
            self._stuck.discard(call)

        with contextlib.suppress(RuntimeError):  # the loop is closed: shutting down
            self._loop.call_soon_threadsafe(forget)

    def _check(self) -> None:
        if len(self._stuck) < self._limit or self._loop.time() < self._quiet_until:
            return
        self._quiet_until = self._loop.time() + PAUSE_SECONDS
        self._loop.call_at(self._quiet_until, self._check)
        self._exhausted(len(self._stuck))
