"""Streams and listeners: failures are reported, and no task is left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from cli import console, listening, streams
from tests.unit.tasklab import assert_cancels_caller, others, settle


class Socket:
    """A WebSocket whose server is silent until `closes`."""

    def __init__(self) -> None:
        self.closes = asyncio.Event()

    async def receive(self) -> Any:
        await self.closes.wait()
        return SimpleNamespace(type=aiohttp.WSMsgType.CLOSE, data=1000, extra="over")

    async def send_bytes(self, data: bytes) -> None:
        """Accepts everything."""


async def failing() -> AsyncIterator[bytes]:
    yield b"data"
    raise ConnectionResetError("odd")


async def silent() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def drop(_data: bytes) -> None:
    """Writes nowhere."""


async def test_exception_of_the_source_ends_the_stream() -> None:
    with pytest.raises(ConnectionResetError, match="odd"):
        await streams.both_ways(failing(), Socket(), drop)  # type: ignore[arg-type]
    assert not others()


async def test_cancelling_the_caller_of_both_ways_leaves_no_task() -> None:
    socket = Socket()
    await assert_cancels_caller(streams.both_ways(silent(), socket, drop), socket.closes.set)  # type: ignore[arg-type]
    assert not others()


async def test_cancelling_an_attached_console_leaves_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    socket = Socket()
    monkeypatch.setattr(console, "raw", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(console, "typed", lambda _: silent())
    terminal: Any = SimpleNamespace(stdin=0, say=lambda _: None)
    await assert_cancels_caller(console.attach(socket, terminal, "vm"), socket.closes.set)  # type: ignore[arg-type]
    assert not others()


async def test_cancelling_the_reader_of_datagrams_cancels_it() -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    await assert_cancels_caller(anext(aiter(listening._waiting(queue))), lambda: queue.put_nowait(b"data"))  # type: ignore[arg-type]


async def test_unhandled_exception_of_a_connection_is_reported_with_the_target(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_path: str) -> Any:
        raise LookupError("odd")

    async with listening.tcp(SimpleNamespace(socket=fail), "/path", "127.0.0.1", 0, "port 22 of vm") as port:  # type: ignore[arg-type]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        async with asyncio.timeout(10):
            while not (text := capsys.readouterr().err):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert text == "error: port 22 of vm: LookupError: odd\n"
    await settle()
    assert not others()


async def test_lost_connection_without_a_reason_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    def lose(_path: str) -> Any:
        raise streams.StreamClosed(1006, "")

    async with listening.tcp(SimpleNamespace(socket=lose), "/path", "127.0.0.1", 0, "port 22 of vm") as port:  # type: ignore[arg-type]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        async with asyncio.timeout(10):
            while not (text := capsys.readouterr().err):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert text == "error: port 22 of vm: connection lost\n"
