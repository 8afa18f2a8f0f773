"""Checks of background tasks: what is left, what is logged, and whether a caller's own cancellation reaches it."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest


class Reports:
    """A `kit.tasks.FailureReport` that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, object]]] = []

    def __call__(self, name: str, error: BaseException, about: Mapping[str, object]) -> None:
        self.seen.append((name, repr(error), dict(about)))


def others() -> set[asyncio.Task[Any]]:
    """The tasks of the event loop besides the caller's."""
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


async def settle() -> None:
    """Lets every task run until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


async def assert_cancels_caller(
    work: Coroutine[Any, Any, object], complete: Callable[[], object], steps: int = 2
) -> None:
    """The caller of `work` is cancelled in the moment in which `complete` ends what it waits for: it must notice.

    `steps`: rounds of the event loop after which `work` waits.
    """
    caller = asyncio.create_task(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    assert not caller.done(), "it does not wait"
    complete()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
