"""An aiohttp site for untrusted clients, with connection limits for each address and a timeout for request heads.

aiohttp has no timeout for a request's head, and asyncio no limit on connections. Here the number of connections of an
address is limited; a connection without a complete request head is closed after HEAD_SECONDS; and when an address has
too many idle connections, the one idle longest is closed.
"""

import asyncio
import errno
import socket
import ssl
from asyncio import sslproto
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiohttp import web
from prometheus_client import Counter as Metric

from kit import log
from kit.tasks import BackgroundTasks

HEAD_SECONDS = 10.0
"""Timeout for the TLS handshake and for a request's head."""
TLS_RECORD = 16 << 10
"""Bytes of a TLS record, and of the TLS buffers of a connection."""
BACKLOG = 128
REFUSED = Metric("hyperlet_connections_refused_total", "Connections refused or closed early, by reason", ["reason"])


class ConnectionLimits(NamedTuple):
    """Maximum numbers of connections. Only `total` applies to clients with a verified certificate."""

    total: int = 4096
    each: int = 256
    """Per address. An API server has at most some hundred concurrent requests."""
    idle: int = 64
    """Per address, idle between two requests."""
    fresh: int = 64
    """Per address, before their first request."""


class GuardedSite(web.BaseSite):
    """An aiohttp site that listens on one port; the only one of its runner."""

    def __init__(
        self,
        runner: web.AppRunner,
        port: int,
        host: str | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        limits: ConnectionLimits | None = None,
        head_seconds: float = HEAD_SECONDS,
    ) -> None:
        super().__init__(runner, ssl_context=ssl_context)
        assert runner.server is not None, "the runner is set up"
        self._http, self._tls = runner.server, ssl_context
        self._host, self._port = host, port
        self._listening: _Listening | None = None
        self._limits = limits or ConnectionLimits()
        self.head_seconds = head_seconds
        self._all = 0
        self._each: Counter[str] = Counter()
        self._fresh: Counter[str] = Counter()
        self._open: dict[str, OrderedDict[_Connection, None]] = {}
        self._by_protocol: dict[asyncio.BaseProtocol, _Connection] = {}
        self._tasks = BackgroundTasks(log.task_failed)

    @property
    def name(self) -> str:
        """See aiohttp."""
        return f"{'https' if self._tls else 'http'}://{self._host or '[::]'}:{self._port}"

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._listening is not None, "started"
        return int(self._listening.socket.getsockname()[1])

    async def start(self) -> None:
        """Starts listening."""
        await super().start()
        # aiohttp reports requests to these two, and each connection takes them over when it is made.
        self._http.request_factory = self._reporting_begin(self._http.request_factory)
        self._http.request_handler = self._reporting_end(self._http.request_handler)
        self._listening = _Listening(_listen(self._host, self._port), self._accepted)

    async def stop(self) -> None:
        """Stops listening and aborts TLS handshakes; aiohttp's runner closes the established connections."""
        if self._listening is not None:
            self._listening.close()
        await super().stop()
        await self._tasks.close()

    def _reporting_begin(self, factory: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
        def begun(message: Any, payload: Any, protocol: Any, *others: Any) -> web.BaseRequest:
            if (connection := self._by_protocol.get(protocol)) is not None:
                connection.request_began(payload)
            return factory(message, payload, protocol, *others)

        return begun

    def _reporting_end(
        self, handler: Callable[[Any], Awaitable[web.StreamResponse]]
    ) -> Callable[[Any], Awaitable[web.StreamResponse]]:
        async def ended(request: Any) -> web.StreamResponse:
            try:
                return await handler(request)
            finally:
                if (connection := self._by_protocol.get(request.protocol)) is not None:
                    connection.request_ended()

        return ended

    # ---- connections -------------------------------------------------------------------------------------------------

    def _accepted(self, connection: socket.socket, address: str) -> None:
        limits = self._limits
        self._make_room(address)
        if self._all >= limits.total:
            return self._refuse(connection, "total")
        if self._each[address] >= limits.each:
            return self._refuse(connection, "address")
        if self._fresh[address] >= limits.fresh:
            return self._refuse(connection, "fresh")
        self._all += 1
        self._each[address] += 1
        self._fresh[address] += 1
        self._tasks.start("connection", self._serve(connection, address), address=address)
        return None

    def _refuse(self, connection: socket.socket, reason: str) -> None:
        REFUSED.labels(reason).inc()
        connection.close()

    async def _serve(self, connection: socket.socket, address: str) -> None:
        protocol = self._http()
        made = self._by_protocol[protocol] = _Connection(self, address, protocol)
        loop = asyncio.get_running_loop()
        try:
            if self._tls is None:
                await loop.connect_accepted_socket(lambda: made, connection)
            else:
                shaken = loop.create_future()
                deadline: Any = self.head_seconds  # any number, whatever its declared type
                tls = _SmallTls(loop, made, self._tls, shaken, server_side=True, ssl_handshake_timeout=deadline)
                await loop.connect_accepted_socket(lambda: tls, connection)
                await shaken
            await made.closed.wait()
        except (OSError, ssl.SSLError):
            connection.close()
        finally:
            del self._by_protocol[protocol]
            self._all -= 1
            _less(self._fresh, address, made.is_fresh)
            _less(self._each, address, not made.is_verified)
            self._forget(made)

    def verified(self, connection: "_Connection") -> None:
        """Lifts the limits of a connection whose client certificate has been verified."""
        self._forget(connection)
        _less(self._each, connection.address, True)

    def grown(self, connection: "_Connection") -> None:
        """Marks a connection as no longer fresh: its first request was received."""
        _less(self._fresh, connection.address, True)

    def seen(self, connection: "_Connection") -> None:
        """Moves an active connection to the end of its address's order for closing idle ones."""
        if not connection.is_verified:
            waiting = self._open.setdefault(connection.address, OrderedDict())
            waiting[connection] = None
            waiting.move_to_end(connection)

    def _make_room(self, address: str) -> None:
        """Closes the connection of the address that has been idle longest, if there are too many."""
        waiting = self._open.get(address) or OrderedDict[_Connection, None]()
        if len(waiting) >= self._limits.idle and (oldest := next((each for each in waiting if each.is_idle), None)):
            REFUSED.labels("idle").inc()
            oldest.end()

    def _forget(self, connection: "_Connection") -> None:
        waiting = self._open.get(connection.address)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._open[connection.address]


def _less(counts: Counter[str], key: str, is_counted: bool) -> None:
    if is_counted:
        counts[key] -= 1
        if not counts[key]:
            del counts[key]


class _SmallTls(sslproto.SSLProtocol):
    """asyncio's TLS with buffers of one record instead of 256 KiB, which it fills with zeros and never shrinks: 200
    connections that received 60 kB each take 18 MiB instead of 86 MiB (measured)."""

    max_size = TLS_RECORD


class _Connection(asyncio.Protocol):
    """A protocol between transport and aiohttp's protocol that tracks when requests begin and end."""

    def __init__(self, site: GuardedSite, address: str, handler: Any) -> None:
        self.address = address
        self.closed = asyncio.Event()
        self.is_fresh, self.is_verified = True, False
        self._site = site
        self._handler = handler
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._is_handled = False
        self._payload: Any = None
        """The body of the latest request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if transport.get_extra_info("peercert"):
            self.is_verified = True
            self._site.verified(self)
        self._await_head()
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._site.seen(self)
        if self._deadline is None and not self._is_busy:
            self._await_head()
        self._handler.data_received(data)

    def request_began(self, payload: Any) -> None:
        """A request's head is complete. `payload`: aiohttp's StreamReader of its body."""
        self._is_handled, self._payload = True, payload
        self._head_came()

    def request_ended(self) -> None:
        """The handler of the request has returned; the response may still have to be sent."""
        self._is_handled = False

    @property
    def _is_busy(self) -> bool:
        """Whether a request is handled, its response is sent, or the rest of its body is read."""
        unsent = self._transport is not None and self._transport.get_write_buffer_size() > 0
        return self._is_handled or unsent or (self._payload is not None and not self._payload.is_eof())

    @property
    def is_idle(self) -> bool:
        """Whether it is waiting for its next request."""
        return not self.is_fresh and self._deadline is None and not self._is_busy

    def _await_head(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(self._site.head_seconds, self._late)

    def _head_came(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self.is_fresh:
            self.is_fresh = False
            self._site.grown(self)

    def _late(self) -> None:
        self._deadline = None
        REFUSED.labels("head").inc()
        self.end()

    def end(self) -> None:
        """Aborts the connection."""
        if self._transport is not None:
            self._transport.abort()

    def eof_received(self) -> Any:
        """See asyncio."""
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        """See asyncio."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._handler.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._handler.connection_lost(error)
        self.closed.set()


class _Listening:
    """Accepts connections like asyncio.Server, but checks the address before allocating anything for a connection."""

    def __init__(self, listening: socket.socket, accepted: Any) -> None:
        self.socket = listening
        self._accepted = accepted
        self._resumes: asyncio.TimerHandle | None = None
        asyncio.get_running_loop().add_reader(listening, self._accept)

    def _accept(self) -> None:
        try:
            connection, address = self.socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:
            # Out of file descriptors: pause until other connections have been closed.
            self._pause()
            return
        connection.setblocking(False)
        self._accepted(connection, str(address[0]).removeprefix("::ffff:"))

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.socket)
        self._resumes = loop.call_later(1.0, loop.add_reader, self.socket, self._accept)

    def close(self) -> None:
        """Stops listening; existing connections stay open."""
        if self._resumes is not None:
            self._resumes.cancel()
        asyncio.get_running_loop().remove_reader(self.socket)
        self.socket.close()


def _listen(host: str | None, port: int) -> socket.socket:
    """A listening socket. Without `host`: dual-stack if the pod has IPv6."""
    listening = None
    if host is None and socket.has_dualstack_ipv6():
        try:
            listening = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
        except OSError as error:
            # The kernel supports IPv6, but the pod's network namespace has none.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    if listening is None:
        family = socket.AF_INET6 if ":" in (host or "") else socket.AF_INET
        listening = socket.create_server((host or "", port), family=family, backlog=BACKLOG)
    listening.setblocking(False)
    return listening
