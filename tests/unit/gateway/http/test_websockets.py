"""The end of streams."""

import asyncio
from typing import Any

from gateway.http import websockets
from gateway.http.websockets import StreamEnd, WebSocketStreams
from tests.unit.tasklab import assert_cancels_caller, others


async def test_cancelling_the_caller_of_stop_cancels_it() -> None:
    streams = WebSocketStreams()
    streams._idle.clear()
    await assert_cancels_caller(streams.stop(60), streams._idle.set)


async def test_cancelling_a_stream_leaves_no_task(monkeypatch: Any) -> None:
    async def never(*_: object) -> StreamEnd:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(websockets, "_to_guest", never)
    monkeypatch.setattr(websockets, "_to_client", never)
    end: asyncio.Future[StreamEnd] = asyncio.get_running_loop().create_future()
    await assert_cancels_caller(
        websockets._pump(None, None, end),  # type: ignore[arg-type]
        lambda: end.set_result(StreamEnd(1001)),
    )
    assert not others()
