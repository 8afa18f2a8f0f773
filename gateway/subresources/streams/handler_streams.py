"""gRPC streams to a handler, for serial console and VNC, as `websockets.Duplex`.

The WebSocket is upgraded only after the handler has accepted the stream, so that an error is a plain HTTP response. The
handler accepts by sending its initial metadata, and refuses by ending the call.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from api import names
from gateway.handler_connections import HandlerConnections, Stub, refused
from gateway.http import status
from kit.duplex import TAKEN
from kit.tasks import cancel_and_wait
from protos import launcher_pb2, node_pb2
from protos.limits import CHUNK_BYTES

ATTACH_SECONDS = 10.0
"""Timeout for opening a stream."""

Input = TypeVar("Input", node_pb2.ConsoleInput, node_pb2.VncInput)
Answer = TypeVar("Answer", launcher_pb2.ConsoleOutput, launcher_pb2.Chunk)


class HandlerStream(Generic[Input, Answer]):
    """A stream to a node. Errors become StatusError; `None` is the end."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Input, Answer], node: str, name: str) -> None:
        self._call: grpc.aio.StreamStreamCall[Input, Answer] = call
        self._node = node
        self._name = name
        self._next: asyncio.Task[Any] | None = None

    async def open(self, first: Input) -> None:
        """Sends the first message, and returns when the node has accepted the stream. Raises StatusError."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # On failure the response has the reason.
            await self._call.write(first)
        self._next = asyncio.get_running_loop().create_task(self._call.read())
        try:
            async with asyncio.timeout(ATTACH_SECONDS):
                if TAKEN[0] in tuple(await self._call.initial_metadata()):
                    return
                # Refused: the read raises the reason.
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
            self._next = asyncio.get_running_loop().create_task(self._call.read())
        try:
            # Shielded: cancellation of the caller must not lose the message.
            message = await asyncio.shield(self._next)
        except grpc.aio.AioRpcError as error:
            raise refused(error, self._node, names.KIND_VMI, self._name) from error
        self._next = None
        return None if message is grpc.aio.EOF else message

    async def send(self, message: Input) -> None:
        """Sends a message, with backpressure."""
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The call has ended. The reader gets the error and cancels this coroutine: read no more from the client.
            await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Cancels the stream, and waits for the end of a pending read."""
        self._call.cancel()
        if self._next is not None:
            await cancel_and_wait(self._next)


@contextlib.asynccontextmanager
async def handler_stream(
    nodes: HandlerConnections,
    node: str,
    name: str,
    method: "Callable[[Stub], grpc.aio.StreamStreamMultiCallable[Input, Answer]]",
    first: Input,
) -> AsyncIterator[HandlerStream[Input, Answer]]:
    """Opens a stream to a node, cancelled on exit. Raises StatusError."""
    async with nodes.stub(node) as stub:
        talk = HandlerStream(method(stub)(), node, name)
        try:
            await talk.open(first)
            yield talk
        finally:
            await talk.close()


class ConsoleStream:
    """The serial console. Notices of the launcher are inserted as separate lines."""

    whole = False

    def __init__(self, talk: HandlerStream[node_pb2.ConsoleInput, launcher_pb2.ConsoleOutput]) -> None:
        self._talk = talk

    async def read(self) -> bytes | None:
        """Output of the guest."""
        answer = await self._talk.answer()
        if answer is None:
            return None
        if not answer.notice:
            return answer.data
        return f"\r\n[{status.readable(answer.notice)}]\r\n".encode() + answer.data

    async def write(self, data: bytes) -> None:
        """Input of the user."""
        for part in parts(data):
            await self._talk.send(node_pb2.ConsoleInput(input=launcher_pb2.ConsoleInput(data=part)))


class VncStream:
    """VNC, as raw RFB."""

    whole = False

    def __init__(self, talk: HandlerStream[node_pb2.VncInput, launcher_pb2.Chunk]) -> None:
        self._talk = talk

    async def read(self) -> bytes | None:
        """Data from QEMU's VNC server."""
        answer = await self._talk.answer()
        return None if answer is None else answer.data

    async def write(self, data: bytes) -> None:
        """Data from the viewer."""
        for part in parts(data):
            await self._talk.send(node_pb2.VncInput(chunk=launcher_pb2.Chunk(data=part)))


def parts(data: bytes) -> list[bytes]:
    """Splits data into chunks of at most CHUNK_BYTES."""
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
