"""WebSockets to guests: consoles, VNC and forwarded ports, with bounded memory and a clean end.

A stream copies both directions, with one message in memory per direction: a slow reader applies backpressure up to
QEMU. A stream ends with a close code and reason (RFC 6455, 7.4): 1000 when the guest closes it, 1001 when the gateway
shuts down, 1011 when the connection to the guest is lost.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from aiohttp import WSCloseCode, WSMsgType, web
from prometheus_client import Gauge

from gateway.http import status
from kit import log
from kit.guarded_site import TLS_RECORD
from kit.tasks import running

PROTOCOL = "plain.kubevirt.io"
MESSAGE_LIMIT = 1 << 20
"""Maximum bytes of a WebSocket message from a client."""
STREAMS = 1000
"""Maximum number of concurrent streams of a gateway."""
STREAMS_OF_ONE = 64
"""Maximum number of concurrent streams to a VM through one gateway."""
STREAMS_OF_NAMESPACE = 250
"""Maximum number of concurrent streams to VMs of a namespace."""
STREAMS_OF_USER = 250
"""Maximum number of concurrent streams of a user, in all namespaces."""
HEARTBEAT_SECONDS = 60.0
"""Ping interval, which keeps connections through load balancers alive; the pong timeout is half of it."""
RECORD = TLS_RECORD
"""Bytes of a message to a client, if message boundaries do not matter: OpenSSL does not shrink larger buffers."""
CLOSE_SECONDS = 3.0
"""Timeout of the closing handshake."""

_log = log.logger(component="streams")


class StreamEnd(NamedTuple):
    """Close code and reason of a stream."""

    code: int
    words: str = ""


class Duplex(Protocol):
    """The guest side of a stream."""

    @property
    def whole(self) -> bool:
        """Whether message boundaries must be preserved, as for datagrams."""

    async def read(self) -> bytes | None:
        """Next data from the guest; None at the end. Raises StatusError when the connection is lost."""

    async def write(self, data: bytes) -> None:
        """Sends data to the guest, with backpressure. Raises StatusError."""


class WebSocketStreams:
    """The streams of this gateway: counted, limited, and closed on shutdown."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Future[StreamEnd], tuple[str, str, str]] = {}
        """Namespace, name and user of each stream."""
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._shown = Counter[tuple[Gauge, str, str]]()

    def __len__(self) -> int:
        return len(self._open)

    async def serve(
        self,
        request: web.Request,
        guest: Duplex,
        namespace: str,
        name: str,
        gauge: Gauge,
        user: str,
    ) -> web.WebSocketResponse:
        """Upgrades the request and copies data until either side closes. Raises StatusError before the upgrade only."""
        socket = self.admit(request, namespace, name, user)
        end: asyncio.Future[StreamEnd] = asyncio.get_running_loop().create_future()
        self._open[end] = (namespace, name, user)
        self._idle.clear()
        try:
            with self._gauged(gauge, namespace, name):
                await socket.prepare(request)
                ending = await _pump(socket, guest, end)
                await _close(socket, request, ending)
        finally:
            del self._open[end]
            if not self._open:
                self._idle.set()
        return socket

    def admit(self, request: web.Request, namespace: str, name: str, user: str) -> web.WebSocketResponse:
        """A WebSocket response for the request. Raises StatusError: 400, 429, or 503 during shutdown."""
        if self._stopping:
            raise status.unavailable("The gateway is shutting down: connect again")
        socket = web.WebSocketResponse(
            protocols=(PROTOCOL,),
            heartbeat=HEARTBEAT_SECONDS,
            timeout=CLOSE_SECONDS,
            max_msg_size=MESSAGE_LIMIT,
            # Compression costs 300 KiB of memory per stream.
            compress=False,
        )
        if not socket.can_prepare(request).ok:
            raise status.bad_request(
                f"this endpoint is a stream: request an upgrade to a WebSocket with subprotocol {PROTOCOL}"
            )
        if len(self._open) >= STREAMS:
            raise status.too_many(f"this gateway has {STREAMS} streams open: close some, or try again later")
        in_namespace = [each for each in self._open.values() if each[0] == namespace]
        if sum(each[1] == name for each in in_namespace) >= STREAMS_OF_ONE:
            raise status.too_many(f"{namespace}/{name} has {STREAMS_OF_ONE} streams open: close some first")
        if len(in_namespace) >= STREAMS_OF_NAMESPACE:
            raise status.too_many(f"namespace {namespace} has {STREAMS_OF_NAMESPACE} streams open: close some first")
        if sum(each[2] == user for each in self._open.values()) >= STREAMS_OF_USER:
            raise status.too_many(f"you have {STREAMS_OF_USER} streams open: close some first")
        return socket

    async def stop(self, seconds: float = 2 * CLOSE_SECONDS) -> None:
        """Closes all streams with 1001, and waits for the clients."""
        self._stopping = True
        for end in self._open:
            if not end.done():
                end.set_result(StreamEnd(WSCloseCode.GOING_AWAY, "the gateway is shutting down: connect again"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    @contextlib.contextmanager
    def _gauged(self, gauge: Gauge, namespace: str, name: str) -> Iterator[None]:
        """Counts the stream in the metrics; the series of a VM without streams is removed."""
        key = (gauge, namespace, name)
        self._shown[key] += 1
        gauge.labels(namespace, name).set(self._shown[key])
        try:
            yield
        finally:
            self._shown[key] -= 1
            if self._shown[key]:
                gauge.labels(namespace, name).set(self._shown[key])
            else:
                del self._shown[key]
                gauge.remove(namespace, name)


async def _pump(socket: web.WebSocketResponse, guest: Duplex, end: asyncio.Future[StreamEnd]) -> StreamEnd:
    """Copies both directions; returns how the stream ended."""
    async with running(_to_guest(socket, guest), _to_client(socket, guest)) as pumps:
        done, _ = await asyncio.wait({*pumps, end}, return_when=asyncio.FIRST_COMPLETED)
        return end.result() if end in done else next(iter(done)).result()


async def _to_guest(socket: web.WebSocketResponse, guest: Duplex) -> StreamEnd:
    while True:
        message = await socket.receive()
        if message.type is WSMsgType.BINARY:
            data = message.data
        elif message.type is WSMsgType.TEXT:
            data = message.data.encode()
        else:
            return StreamEnd(WSCloseCode.OK)
        try:
            await guest.write(data)
        except status.StatusError as error:
            return StreamEnd(WSCloseCode.INTERNAL_ERROR, error.message)


async def _to_client(socket: web.WebSocketResponse, guest: Duplex) -> StreamEnd:
    while True:
        try:
            data = await guest.read()
        except status.StatusError as error:
            return StreamEnd(WSCloseCode.INTERNAL_ERROR, error.message)
        if data is None:
            return StreamEnd(WSCloseCode.OK, "the guest closed the stream")
        size = max(len(data), 1) if guest.whole else RECORD
        try:
            for at in range(0, max(len(data), 1), size):
                await socket.send_bytes(data[at : at + size])
        except (ConnectionError, RuntimeError):
            # The client disconnected without a close frame.
            return StreamEnd(WSCloseCode.OK)


async def _close(socket: web.WebSocketResponse, request: web.Request, ending: StreamEnd) -> None:
    """Sends the close frame; aborts the connection of an unresponsive client."""
    words = ending.words.encode()[:120].decode("utf-8", "ignore").encode()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(code=ending.code, message=words, drain=False)
    except (TimeoutError, ConnectionError, RuntimeError):
        pass
    if request.transport is not None:
        request.transport.close()
