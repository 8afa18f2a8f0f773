"""An aiohttp site for untrusted clients, with connection limits for each address and a timeout for request heads.

aiohttp has no timeout for a request's head, and asyncio no limit on connections. Here the number of connections of an
address is limited; a connection without a complete request head is closed after HEAD_SECONDS; and when an address has
too many idle connections, the one idle longest is closed.
"""

import asyncio
import errno
import socket
import ssl
from collections import Counter, OrderedDict
from typing import Any, NamedTuple

from aiohttp import web
from prometheus_client import Counter as Metric

from kit import log
from kit.tasks import BackgroundTasks

HEAD_SECONDS = 10.0
"""Timeout for the TLS handshake and for a request's head."""
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
    """An aiohttp site that listens on one port."""

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
        self._host, self._port = host, port
        self._limits = limits or ConnectionLimits()
        self.head_seconds = head_seconds
        self._all = 0
        self._each: Counter[str] = Counter()
        self._fresh: Counter[str] = Counter()
        self._open: dict[str, OrderedDict[_Connection, None]] = {}
        self._tasks = BackgroundTasks(log.task_failed)

    @property
    def name(self) -> str:
        """See aiohttp."""
        return f"{'https' if self._ssl_context else 'http'}://{self._host or '[::]'}:{self._port}"

    async def start(self) -> None:
        """Starts listening."""
        await super().start()
        self._server = _Listening(_listen(self._host, self._port), self._accepted)  # type: ignore[assignment]

    async def stop(self) -> None:
        """Stops listening and aborts TLS handshakes; aiohttp's runner closes the established connections."""
        await super().stop()
        await self._tasks.close()

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
        made = _Connection(self, address, self._runner.server())  # type: ignore[misc]
        deadlines: dict[str, Any] = {"ssl_handshake_timeout": self.head_seconds} if self._ssl_context else {}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: made, connection, ssl=self._ssl_context, **deadlines
            )
            await made.closed.wait()
        except (OSError, ssl.SSLError):
            connection.close()
        finally:
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
        handler = self._handler
        self._site.seen(self)
        before, was_idle = handler._request_count, handler._request_in_progress is False
        handler.data_received(data)
        if handler._request_count > before:
            self._head_came()
        elif was_idle and self._deadline is None and not handler._upgraded:
            self._await_head()

    @property
    def is_idle(self) -> bool:
        """Whether it is waiting for its next request."""
        waiter = self._handler._waiter
        return not self.is_fresh and self._deadline is None and waiter is not None and not waiter.done()

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
        self.sockets = [listening]
        self._accepted = accepted
        self._resumes: asyncio.TimerHandle | None = None
        asyncio.get_running_loop().add_reader(listening, self._accept)

    def _accept(self) -> None:
        try:
            connection, address = self.sockets[0].accept()
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
        loop.remove_reader(self.sockets[0])
        self._resumes = loop.call_later(1.0, loop.add_reader, self.sockets[0], self._accept)

    def close(self) -> None:
        """Stops listening; existing connections stay open."""
        if self._resumes is not None:
            self._resumes.cancel()
        for each in self.sockets:
            asyncio.get_running_loop().remove_reader(each)
            each.close()


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
