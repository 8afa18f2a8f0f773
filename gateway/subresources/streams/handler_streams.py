"""The streams to a node that stand behind a WebSocket: the serial console and VNC, as `websockets.Duplex`.

Nothing is upgraded before the node has taken the stream, so that a refusal is a plain HTTP answer. The handler says so
with its initial metadata; one that refuses ends the call instead.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from api import names
from gateway.handler_connections import HandlerConnections, refused
from gateway.http import status
from gateway.http.websockets import CHUNK
from kit.duplex import TAKEN
from protos import launcher_pb2, node_pb2

ATTACH_SECONDS = 10.0
"""How long a node may take to open a stream."""

Answer = TypeVar("Answer", launcher_pb2.ConsoleOutput, launcher_pb2.Chunk)


class HandlerStream(Generic[Answer]):
    """One stream to a node. Errors become `Refused`; `None` is the end."""

    def __init__(self, call: Any, node: str, name: str) -> None:
        self._call = call
        self._node = node
        self._name = name
        self._next: asyncio.Future[Any] | None = None

    async def open(self, first: Any) -> None:
        """Sends the first message, and returns when the node has taken the stream. Raises StatusError."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # When this fails the answer says why.
            await self._call.write(first)
        self._next = asyncio.ensure_future(self._call.read())
        try:
            async with asyncio.timeout(ATTACH_SECONDS):
                if TAKEN[0] in tuple(await self._call.initial_metadata()):
                    return
                # Refused: why comes next.
                await asyncio.shield(self._next)
        except TimeoutError:
            raise status.StatusError(
                504, "Timeout", f"The handler of node {self._node} did not answer in time"
            ) from None
        except grpc.aio.AioRpcError as error:
            raise refused(error, self._node, names.KIND_VMI, self._name) from error

    async def answer(self) -> Answer | None:
        """The node's next message. Raises StatusError."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._call.read())
        try:
            # Shielded: the message that is waited for must not be lost with the waiter.
            message = await asyncio.shield(self._next)
        except grpc.aio.AioRpcError as error:
            raise refused(error, self._node, names.KIND_VMI, self._name) from error
        self._next = None
        return None if message is grpc.aio.EOF else message

    async def send(self, message: Any) -> None:
        """Sends a message; returns when gRPC has room for the next one."""
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The call is over. The reading side hears how, and ends this one: nothing more is taken from the client.
            await asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        """Ends the stream."""
        if self._next is not None:
            self._next.add_done_callback(_forget)
            self._next.cancel()
        self._call.cancel()


def _forget(answer: asyncio.Future[Any]) -> None:
    """Takes an answer that nobody waits for any more, so that asyncio does not complain about its error."""
    if not answer.cancelled():
        answer.exception()


@contextlib.asynccontextmanager
async def handler_stream(
    nodes: HandlerConnections, node: str, name: str, method: Callable[[Any], Any], first: Any
) -> AsyncIterator[HandlerStream[Any]]:
    """An open stream to a node, ended at the exit. Raises StatusError."""
    async with nodes.stub(node) as stub:
        talk: HandlerStream[Any] = HandlerStream(method(stub)(), node, name)
        try:
            await talk.open(first)
            yield talk
        finally:
            talk.cancel()


class ConsoleStream:
    """The serial console. What the launcher has to tell the person becomes a line of its own in the stream."""

    whole = False

    def __init__(self, talk: HandlerStream[launcher_pb2.ConsoleOutput]) -> None:
        self._talk = talk

    async def read(self) -> bytes | None:
        """What the guest prints."""
        answer = await self._talk.answer()
        if answer is None:
            return None
        if not answer.notice:
            return answer.data
        return f"\r\n[{status.readable(answer.notice)}]\r\n".encode() + answer.data

    async def write(self, data: bytes) -> None:
        """What the person types."""
        for part in parts(data):
            await self._talk.send(node_pb2.ConsoleInput(input=launcher_pb2.ConsoleInput(data=part)))


class VncStream:
    """The screen, as RFB."""

    whole = False

    def __init__(self, talk: HandlerStream[launcher_pb2.Chunk]) -> None:
        self._talk = talk

    async def read(self) -> bytes | None:
        """What QEMU's VNC server sends."""
        answer = await self._talk.answer()
        return None if answer is None else answer.data

    async def write(self, data: bytes) -> None:
        """What the viewer sends."""
        for part in parts(data):
            await self._talk.send(node_pb2.VncInput(chunk=launcher_pb2.Chunk(data=part)))


def parts(data: bytes) -> list[bytes]:
    """The bytes in pieces that a message may have; nothing for nothing."""
    return [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
