"""Waiting for something to become true."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.waiting import until, wait_for


def test_first_true_answer_is_returned() -> None:
    answers: list[Any] = [None, 0, "", "found", "later"]
    assert wait_for(lambda: answers.pop(0), "an answer") == "found"
    assert answers == ["later"]


def test_transient_errors_are_asked_again() -> None:
    looks = iter([OSError("refused"), KeyError("status"), True])

    def look() -> bool:
        answer = next(looks)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert wait_for(look, "an answer") is True


def test_timeout_names_what_was_awaited_and_the_last_error() -> None:
    def refused() -> bool:
        raise OSError("connection refused")

    with pytest.raises(AssertionError, match=r"after 0.05 s still not: a boot .*connection refused.*\nthe console"):
        wait_for(refused, "a boot", seconds=0.05, explain=lambda: "the console")


def test_other_errors_end_the_wait() -> None:
    def wrong() -> bool:
        raise AssertionError("wrong answer")

    with pytest.raises(AssertionError, match=r"^wrong answer$"):
        wait_for(wrong, "an answer")


async def test_until_lets_other_tasks_run() -> None:
    done: list[int] = []
    task = asyncio.create_task(asyncio.sleep(0, result=done.append(1)))
    await until(lambda: done, "a task", seconds=5)
    await task
    with pytest.raises(AssertionError, match="still not: nothing"):
        await until(lambda: False, "nothing", seconds=0.05, pause=0)
