"""Background tasks: their exceptions are logged with the object they work for, and none outlives its owner.

Nothing else starts tasks, except through `asyncio.TaskGroup`. Standard library only: the launcher uses it, too.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

FailureReport = Callable[[str, BaseException, Mapping[str, object]], None]
"""Logs the exception of the task with this name; the mapping identifies its object (`kit.log.task_failed`)."""


class BackgroundTasks:
    """The background tasks of one owner, which calls `close` at its end."""

    def __init__(self, report: FailureReport) -> None:
        self._report = report
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, name: str, work: Coroutine[Any, Any, T], /, **about: object) -> asyncio.Task[T]:
        """Runs the coroutine until its end, or until `close`. Its exception is logged with the keys `about`."""
        task = self._started(name, work)
        task.add_done_callback(lambda ended: self._log(name, ended, about))
        return task

    async def complete(self, name: str, work: Coroutine[Any, Any, T], /, **about: object) -> T:
        """Runs the coroutine to its end even if the caller is cancelled, and returns its result.

        Raises its exception; if the caller was cancelled, the exception is logged with the keys `about`.
        """
        task = self._started(name, work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda ended: self._log(name, ended, about))
            raise

    async def finish(self) -> None:
        """Waits until every task has ended by itself."""
        while tasks := self._running():
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Cancels every task, and waits until all have ended."""
        while tasks := self._running():
            await cancel_and_wait(*tasks)

    def _started(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _running(self) -> set[asyncio.Task[Any]]:
        return {task for task in self._tasks if not task.done() and task is not asyncio.current_task()}

    def _log(self, name: str, task: asyncio.Task[Any], about: Mapping[str, object]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report(name, error, about)


@contextlib.asynccontextmanager
async def running(*works: Coroutine[Any, Any, Any]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Runs the coroutines during the block, which checks their results; those left are cancelled and awaited."""
    tasks = [asyncio.get_running_loop().create_task(work) for work in works]
    try:
        yield tasks
    finally:
        await cancel_and_wait(*tasks)


async def until_one_ends(*works: Coroutine[Any, Any, Any]) -> None:
    """Runs the coroutines until one ends, then cancels the others. Raises the first one's exception."""
    async with running(*works) as tasks:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancels the tasks and waits for their end. Drops their exceptions, but not a cancellation of the caller."""
    for task in tasks:
        if not task.cancelling():  # else it is cleaning up already
            task.cancel()
        task.add_done_callback(_retrieve)
    # Not `await task` with CancelledError suppressed: that would drop the caller's cancellation, too.
    if tasks:
        await asyncio.wait(tasks)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """asyncio logs exceptions that nobody has retrieved."""
    if not task.cancelled():
        task.exception()
