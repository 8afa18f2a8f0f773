"""Background tasks are logged, cancelled and awaited; a caller's own cancellation is never dropped."""

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kit import log
from kit.tasks import BackgroundTasks, cancel_and_wait, running, until_one_ends
from tests.unit.tasklab import Reports, assert_cancels_caller, others, settle

ROOT = Path(__file__).parents[3]
ROLES = ("cli", "cni", "controller", "gateway", "handler", "kit", "launcher")
OWN_TASKS = {
    "kit/tasks.py": "the helper",
    "gateway/subresources/streams/handler_streams.py": "a pending read, whose exception the next reader gets",
}


async def fail(words: str) -> None:
    raise LookupError(words)


async def slow_end(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        for _ in range(5):
            await asyncio.sleep(0)
        ended.append("ended")


async def test_exception_is_reported_with_name_and_object() -> None:
    reports = Reports()
    tasks = BackgroundTasks(reports)
    tasks.start("set-up", fail("odd"), namespace="default", name="web")
    await settle()
    assert reports.seen == [("set-up", "LookupError('odd')", {"namespace": "default", "name": "web"})]
    assert len(tasks) == 0


async def test_log_line_has_task_object_and_exception() -> None:
    with capture_logs() as lines:
        BackgroundTasks(log.task_failed).start("set-up", fail("odd"), namespace="default", name="web")
        await settle()
    (line,) = lines
    assert (line["log_level"], line["task"], line["namespace"], line["name"]) == ("error", "set-up", "default", "web")
    assert repr(line["exc_info"]) == "LookupError('odd')"


async def test_close_cancels_and_awaits_every_task() -> None:
    reports, ended = Reports(), list[str]()
    tasks = BackgroundTasks(reports)
    for _ in range(3):
        tasks.start("slow", slow_end(ended))
    await settle()
    await tasks.close()
    assert ended == ["ended"] * 3 and not others() and reports.seen == []


async def test_close_awaits_a_task_started_by_an_ending_one() -> None:
    tasks, ended = BackgroundTasks(Reports()), list[str]()

    async def parent() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tasks.start("child", slow_end(ended))
            await asyncio.sleep(0)

    tasks.start("parent", parent())
    await settle()
    await tasks.close()
    assert ended == ["ended"] and not others()


async def test_task_that_fails_while_being_cancelled_is_reported() -> None:
    reports = Reports()
    tasks = BackgroundTasks(reports)

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("odd")

    tasks.start("work", work(), name="web")
    await settle()
    await tasks.close()
    assert reports.seen == [("work", "LookupError('odd')", {"name": "web"})]


async def test_cancelling_the_caller_of_close_cancels_it() -> None:
    tasks, ended = BackgroundTasks(Reports()), list[str]()
    tasks.start("slow", slow_end(ended))
    await settle()
    await assert_cancels_caller(tasks.close(), lambda: None)
    await tasks.close()
    assert ended == ["ended"]


async def test_complete_returns_result_and_raises_exception_without_report() -> None:
    reports = Reports()
    tasks = BackgroundTasks(reports)
    assert await tasks.complete("wait", asyncio.sleep(0, 7)) == 7
    with pytest.raises(LookupError):
        await tasks.complete("fail", fail("odd"))
    assert reports.seen == [] and not others()


async def test_completed_work_outlives_a_cancelled_caller_and_its_exception_is_reported() -> None:
    reports, go = Reports(), asyncio.Event()
    tasks = BackgroundTasks(reports)

    async def work() -> None:
        await go.wait()
        raise LookupError("odd")

    caller = asyncio.create_task(tasks.complete("attach", work(), pod_uid="uid"))
    await settle()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert len(tasks) == 1, "the work was cancelled with its caller"
    go.set()
    await tasks.finish()
    assert reports.seen == [("attach", "LookupError('odd')", {"pod_uid": "uid"})] and not others()


async def test_exception_at_the_moment_of_cancellation_is_reported() -> None:
    reports, go = Reports(), asyncio.Event()

    async def work() -> None:
        await go.wait()
        raise LookupError("odd")

    await assert_cancels_caller(BackgroundTasks(reports).complete("attach", work()), go.set)
    await settle()
    assert [seen[0] for seen in reports.seen] == ["attach"]


async def test_running_cancels_what_is_left_at_the_end_of_the_block() -> None:
    ended: list[str] = []
    async with running(slow_end(ended), asyncio.sleep(0, 7)) as (_, quick):
        assert await quick == 7
    assert ended == ["ended"] and not others()


async def test_until_one_ends_raises_its_exception_and_ends_the_others() -> None:
    ended: list[str] = []
    with pytest.raises(LookupError):
        await until_one_ends(slow_end(ended), fail("odd"))
    assert ended == ["ended"] and not others()


async def test_cancelling_the_caller_of_until_one_ends_ends_its_tasks() -> None:
    ended, go = list[str](), asyncio.Event()

    async def first() -> None:
        await go.wait()

    await assert_cancels_caller(until_one_ends(slow_end(ended), first()), go.set)
    assert ended == ["ended"] and not others()


async def test_cancelling_the_caller_of_cancel_and_wait_cancels_it() -> None:
    ended: list[str] = []
    child = asyncio.create_task(slow_end(ended))
    await settle()
    await assert_cancels_caller(cancel_and_wait(child), lambda: None)
    await cancel_and_wait(child)
    assert ended == ["ended"], "the clean-up was cancelled, too"


def calls(*methods: str) -> Iterator[tuple[str, str]]:
    """File, and the variable whose method is called."""
    for role in ROLES:
        for file in sorted((ROOT / role).rglob("*.py")):
            text = file.read_text()
            if not any(f".{method}(" in text for method in methods):
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods:
                    yield str(file.relative_to(ROOT)), ast.unparse(node.func.value)


def test_only_the_helper_and_task_groups_start_tasks() -> None:
    found = {file for file, owner in calls("create_task", "ensure_future") if owner != "group"}
    assert found == set(OWN_TASKS)


def test_wait_for_is_not_used() -> None:
    # Python 3.11's asyncio.wait_for drops the caller's cancellation if the awaited task ends at the same time.
    assert [file for file, owner in calls("wait_for") if owner == "asyncio"] == []
