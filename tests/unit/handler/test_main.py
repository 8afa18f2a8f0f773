"""The handler's tasks: all end with the process, and one that fails ends it."""

import asyncio

import pytest
from structlog.testing import capture_logs

from handler.__main__ import run_until
from tests.unit.tasklab import others


async def forever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ended.append("ended")


async def fail() -> None:
    await asyncio.sleep(0)
    raise LookupError("odd")


async def test_stop_leaves_no_task() -> None:
    stop, ended = asyncio.Event(), list[str]()
    asyncio.get_running_loop().call_later(0.01, stop.set)
    await run_until(stop, {"one": forever(ended), "two": forever(ended)})
    assert ended == ["ended", "ended"] and not others()


async def test_failing_task_is_logged_by_name_and_ends_the_others() -> None:
    ended: list[str] = []
    with capture_logs() as lines, pytest.raises(LookupError, match="odd"):
        await run_until(asyncio.Event(), {"one": forever(ended), "heartbeat": fail()})
    assert ended == ["ended"] and not others()
    assert [(line["task"], repr(line["exc_info"])) for line in lines] == [("heartbeat", "LookupError('odd')")]
