"""The controller's process: termination and cancellation."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from controller import __main__ as process
from tests.unit.tasklab import assert_cancels_caller, others


class Server:
    """A `serve` that notes its end."""

    def __init__(self) -> None:
        self.started, self.ends = asyncio.Event(), asyncio.Event()
        self.ended = False

    async def serve(self, _kube: object) -> None:
        self.started.set()
        try:
            await self.ends.wait()
        finally:
            self.ended = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()

    @contextlib.asynccontextmanager
    async def connect(_role: str) -> AsyncIterator[None]:
        yield None

    monkeypatch.setattr(process.Kube, "connect", connect)
    monkeypatch.setattr(process.log, "setup", lambda _role: None)
    monkeypatch.setattr(process, "serve", made.serve)
    return made


async def test_sigterm_ends_the_process_and_leaves_no_task(server: Server) -> None:
    main = asyncio.create_task(process.main())
    await server.started.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await main == 0
    assert server.ended and not others()


async def test_cancelling_the_caller_of_main_cancels_it(server: Server) -> None:
    await assert_cancels_caller(process.main(), server.ends.set, steps=5)
    assert server.ended and not others()
