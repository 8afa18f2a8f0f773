"""Waiting for something to become true, for all tests: `wait_for` blocks, `until` lets the event loop run."""

from __future__ import annotations

import asyncio
import http.client
import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LONGEST = 0.3
GROWTH = 1.5
"""Factor of the pause between two looks: short waits end soon, long ones cost little."""


class NotYet(Exception):
    """Base of errors that say nothing about what a later look would find."""


TRANSIENT = (NotYet, OSError, ValueError, KeyError, TypeError, http.client.HTTPException, subprocess.TimeoutExpired)
"""Errors of an API server, guest or process that does not answer yet, or not yet sensibly."""


class _Wait:
    """The looks of one wait."""

    def __init__(
        self, ready: Callable[[], object], what: str, seconds: float, explain: Callable[[], str] | None
    ) -> None:
        self._ready, self._what, self._seconds, self._explain = ready, what, seconds, explain
        self._end = time.monotonic() + seconds
        self._refusal: Exception | None = None

    def look(self) -> object:
        """The answer if it is true, else something false."""
        try:
            answer = self._ready()
            self._refusal = None
            return answer
        except TRANSIENT as error:
            self._refusal = error
            return None

    def check(self) -> None:
        """Raises AssertionError when the time is over."""
        if time.monotonic() > self._end:
            refusal = f" ({self._refusal!r})" if self._refusal else ""
            story = f"\n{self._explain()}" if self._explain else ""
            message = f"after {self._seconds:g} s still not: {self._what or 'what was waited for'}{refusal}{story}"
            raise AssertionError(message) from self._refusal


def wait_for(
    ready: Callable[[], T | None],
    what: str = "",
    seconds: float = 60,
    *,
    explain: Callable[[], str] | None = None,
) -> T:
    """Asks again and again until the answer is true, and returns it.

    A TRANSIENT error counts as not yet. Raises AssertionError with what was waited for, the last error and everything
    that `explain` knows.
    """
    wait, pause = _Wait(ready, what, seconds, explain), 0.01
    began = time.monotonic()
    while not (answer := wait.look()):
        wait.check()
        # A look that takes long, such as a child process, is not repeated at once.
        time.sleep(min(max(pause, time.monotonic() - began), LONGEST))
        began, pause = time.monotonic(), min(pause * GROWTH, LONGEST)
    return answer  # type: ignore[return-value]


async def until(ready: Callable[[], object], what: str = "", *, seconds: float = 30, pause: float = 0.002) -> None:
    """Like `wait_for`, without blocking the event loop. `pause` 0: looks after every round of the event loop."""
    wait = _Wait(ready, what, seconds, None)
    while not wait.look():
        wait.check()
        await asyncio.sleep(pause)
        pause = min(pause * GROWTH, 0.03)
