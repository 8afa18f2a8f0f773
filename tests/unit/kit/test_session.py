"""The conversation with an API server; most of it: test_kube.py and tests/unit/cli."""

import asyncio
from types import SimpleNamespace
from typing import Any

from kit import session
from tests.unit.tasklab import assert_cancels_caller


async def test_cancelling_the_reader_of_a_refusal_cancels_it() -> None:
    ends = asyncio.Event()
    released: list[bool] = []

    async def read() -> bytes:
        await ends.wait()
        return b""

    answer: Any = SimpleNamespace(status=500, read=read, release=lambda: released.append(True))
    await assert_cancels_caller(session._refuse(answer), ends.set)
    assert released
