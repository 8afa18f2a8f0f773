"""The HTTPS server: one aiohttp application with the routes of all parts of the gateway."""

import asyncio
import ssl
from collections.abc import Callable, Iterable

from aiohttp import web

from gateway.context import Gateway
from gateway.http import status
from gateway.http.status import StatusError
from kit import log
from kit.guarded_site import ConnectionLimits, GuardedSite

BODY_LIMIT = 8 << 20
"""Maximum size of a request in bytes: objects have up to 3 MiB, and a review of an update has two."""
KEEPALIVE_SECONDS = 3600.0
"""Longer than the clients' timeouts: if the server closed idle connections, it could race with a request."""
DRAIN_SECONDS = 5.0
"""How long connections are accepted after SIGTERM, until the Service has removed the endpoint."""
SHUTDOWN_SECONDS = 10.0
"""Timeout for requests in flight after that."""

LINGERING_SECONDS = 1.0
"""Timeout for reading the rest of a refused body, so that the client receives the response."""

Routes = Callable[[web.Application, Gateway], None]
"""Adds routes and lifecycle hooks (app.on_startup, app.on_shutdown, app.cleanup_ctx)."""

_log = log.logger(component="server")


def application(gateway: Gateway, parts: Iterable[Routes]) -> web.Application:
    """The application with the routes of all parts."""
    app = web.Application(client_max_size=BODY_LIMIT, middlewares=[_message])
    for routes in parts:
        routes(app, gateway)
    return app


@web.middleware
async def _message(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
    """Errors become a Status; unhandled exceptions a generic one, details go to the log."""
    try:
        answer = await handler(request)  # type: ignore[misc]
    except StatusError as refusal:
        return refusal.response()
    except web.HTTPException:
        raise
    except Exception:
        _log.exception("unhandled exception in HTTP request", method=request.method, path=request.path[:200])
        return status.internal("see the log of the gateway").response()
    assert isinstance(answer, web.StreamResponse)
    return answer


class HttpsServer:
    """The listener, with a graceful shutdown."""

    def __init__(self, app: web.Application, context: ssl.SSLContext, limits: ConnectionLimits | None = None) -> None:
        self._context = context
        self._limits = limits
        self._stopping = False
        app.on_response_prepare.append(self._part)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEEPALIVE_SECONDS,
            shutdown_timeout=SHUTDOWN_SECONDS,
            lingering_time=LINGERING_SECONDS,
        )

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called: /readyz fails, which removes the replica from the Service."""
        return self._stopping

    async def start(self, port: int, host: str | None = None) -> int:
        """Starts listening; returns the port."""
        await self._runner.setup()
        site = GuardedSite(self._runner, port, host, ssl_context=self._context, limits=self._limits)
        await site.start()
        return site.port

    async def stop(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Serves for `drain_seconds` until the endpoint is removed everywhere; then closes connections."""
        self._stopping = True
        await asyncio.sleep(drain_seconds)
        await self._runner.cleanup()

    async def _part(self, _request: web.Request, response: web.StreamResponse) -> None:
        if self._stopping and not isinstance(response, web.WebSocketResponse):
            # The client reconnects, to another replica.
            response.headers["Connection"] = "close"
            response.force_close()
