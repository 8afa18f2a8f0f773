"""WebSockets to guests: consoles, VNC and forwarded ports, with bounded memory and a clean end.

Every stream is a pair of pumps, each of which holds one message at a time: whoever reads slowly is waited for, all the
way to QEMU. A stream ends with a close code and words (RFC 6455, 7.4): 1000 when the guest's side ends, 1001 when the
gateway stops, 1011 when the way to the guest breaks.
"""

import asyncio
import contextlib
from asyncio import sslproto
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from aiohttp import WSCloseCode, WSMsgType, web
from prometheus_client import Gauge

from gateway.http import status
from kit import log

PROTOCOL = "plain.kubevirt.io"
CHUNK = 64 << 10
"""Bytes of one message to a node, as launcher.proto says."""
MESSAGE_LIMIT = 1 << 20
"""Bytes of one WebSocket message from a client."""
STREAMS = 1000
"""Streams of one gateway at a time."""
STREAMS_OF_ONE = 64
"""Streams to one virtual machine at a time through one gateway."""
STREAMS_OF_NAMESPACE = 250
"""Streams to one namespace's virtual machines: a tenant's part."""
STREAMS_OF_USER = 250
"""Streams of one user, in whatever namespaces."""
HEARTBEAT_SECONDS = 60.0
"""An idle stream is pinged this often, which keeps middle boxes awake; who answers nothing for half as long is gone."""
RECORD = 16 << 10
"""Bytes of one message to a client where the pieces do not matter, and of what TLS holds of one connection at a time: a
TLS record. Larger ones would make OpenSSL's and asyncio's buffers grow, which they keep: 200 consoles that have carried
60 kB messages take 125 MiB more with asyncio's own 256 KiB (measured)."""
CLOSE_SECONDS = 3.0
"""Patience with a client that is told the end."""

_log = log.logger(component="streams")


class StreamEnd(NamedTuple):
    """Why a stream ends."""

    code: int
    words: str = ""


class Duplex(Protocol):
    """The guest's end of a stream."""

    @property
    def whole(self) -> bool:
        """Whether every piece must stay one message, as datagrams must."""

    async def read(self) -> bytes | None:
        """What the guest sends next; None at the end. Raises StatusError when the way breaks."""

    async def write(self, data: bytes) -> None:
        """Hands over what the client sends; returns when there is room for more. Raises StatusError."""


def limit_buffers() -> None:
    """Has asyncio's TLS keep a record for each connection of this process, where it would keep 256 KiB."""
    sslproto.SSLProtocol.max_size = RECORD


class WebSocketStreams:
    """All streams of this gateway: counted, limited, and ended together when the gateway stops."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Future[StreamEnd], tuple[str, str, str]] = {}
        """Namespace, name and user of each."""
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
        """Upgrades the request and moves bytes until either side ends. Raises StatusError before the upgrade only."""
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
        """The WebSocket that the request may become. Raises StatusError: 400, 429, or 503 while the gateway stops."""
        if self._stopping:
            raise status.unavailable("The gateway is shutting down: connect again")
        socket = web.WebSocketResponse(
            protocols=(PROTOCOL,),
            heartbeat=HEARTBEAT_SECONDS,
            timeout=CLOSE_SECONDS,
            max_msg_size=MESSAGE_LIMIT,
            # Compression would cost 300 KiB of memory for each stream.
            compress=False,
        )
        if not socket.can_prepare(request).ok:
            raise status.bad_request(
                f"this endpoint is a stream: request an upgrade to a WebSocket with subprotocol {PROTOCOL}"
            )
        if len(self._open) >= STREAMS:
            raise status.too_many(f"this gateway has {STREAMS} streams open: close some, or try again later")
        theirs = [each for each in self._open.values() if each[0] == namespace]
        if sum(each[1] == name for each in theirs) >= STREAMS_OF_ONE:
            raise status.too_many(f"{namespace}/{name} has {STREAMS_OF_ONE} streams open: close some first")
        if len(theirs) >= STREAMS_OF_NAMESPACE:
            raise status.too_many(f"namespace {namespace} has {STREAMS_OF_NAMESPACE} streams open: close some first")
        if sum(each[2] == user for each in self._open.values()) >= STREAMS_OF_USER:
            raise status.too_many(f"you have {STREAMS_OF_USER} streams open: close some first")
        return socket

    async def stop(self, seconds: float = 2 * CLOSE_SECONDS) -> None:
        """Tells every client that the gateway goes away, and waits until they are gone."""
        self._stopping = True
        for end in self._open:
            if not end.done():
                end.set_result(StreamEnd(WSCloseCode.GOING_AWAY, "the gateway is shutting down: connect again"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    @contextlib.contextmanager
    def _gauged(self, gauge: Gauge, namespace: str, name: str) -> Iterator[None]:
        """Counts the stream in the metrics; a machine without streams has no line there."""
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
    """Moves bytes both ways; how it ended."""
    pumps = {asyncio.create_task(_to_guest(socket, guest)), asyncio.create_task(_to_client(socket, guest))}
    try:
        done, _ = await asyncio.wait({*pumps, end}, return_when=asyncio.FIRST_COMPLETED)
        if end in done:
            return end.result()
        return next(iter(done)).result()
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


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
            # The client has gone without a word.
            return StreamEnd(WSCloseCode.OK)


async def _close(socket: web.WebSocketResponse, request: web.Request, ending: StreamEnd) -> None:
    """Says goodbye; a client that does not listen is cut off."""
    words = ending.words.encode()[:120].decode("utf-8", "ignore").encode()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(code=ending.code, message=words, drain=False)
    except (TimeoutError, ConnectionError, RuntimeError):
        pass
    if request.transport is not None:
        request.transport.close()
