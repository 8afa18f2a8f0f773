"""Calls to handlers: a caller's cancellation, and the tasks that close channels."""

import asyncio
from types import SimpleNamespace
from typing import Any

from structlog.testing import capture_logs

from gateway.handler_connections import HandlerConnections, _HandlerConnection
from tests.unit.tasklab import assert_cancels_caller, others, settle


class Channel:
    """A channel that takes time to close, or fails to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.closed = False

    async def close(self) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.closed = True

    def unary_unary(self, *_: Any, **__: Any) -> None:
        """For the stub."""

    unary_stream = stream_unary = stream_stream = unary_unary


def connections(channel: Channel) -> tuple[HandlerConnections, _HandlerConnection]:
    made = HandlerConnections(None, "hyperlet", SimpleNamespace(client=None))  # type: ignore[arg-type]
    link = _HandlerConnection(("10.0.0.1:8444", None), channel)  # type: ignore[arg-type]
    made._links["node-1"] = link
    made._link = lambda node: link  # type: ignore[method-assign]
    return made, link


async def test_cancelling_the_caller_of_a_call_cancels_it() -> None:
    answered = asyncio.Event()

    async def ask(_stub: object) -> str:
        await answered.wait()
        return "answer"

    made, _ = connections(Channel())
    await assert_cancels_caller(made.call("node-1", "VirtualMachineInstance", "vm", ask), answered.set)


async def test_close_leaves_no_task() -> None:
    channel = Channel()
    made, _ = connections(channel)
    await made.close()
    assert channel.closed and not others()


async def test_channel_that_cannot_be_closed_is_logged_with_its_node() -> None:
    made, link = connections(Channel(LookupError("odd")))
    link.retired = True
    with capture_logs() as lines:
        async with made.stub("node-1"):
            pass
        await settle()
    assert [(line["task"], line["node"]) for line in lines] == [("close-channel", "node-1")]
