"""The HTTPS server of the gateway: one aiohttp application that every part adds its routes to."""

import asyncio
import ssl
from collections.abc import Callable, Iterable

from aiohttp import web

from gateway.context import Gateway
from kit import log
from kit.guarded_site import ConnectionLimits, GuardedSite

BODY_LIMIT = 8 << 20
"""Bytes of a request: the API server takes objects of up to 3 MiB, and a review of an update has two."""
KEEPALIVE_SECONDS = 3600.0
"""Longer than any client's: who closes an idle connection must be its client, or a request may meet the closing."""
DRAIN_SECONDS = 5.0
"""From being told to stop until the last connection is taken: by then the Service has forgotten this replica."""
SHUTDOWN_SECONDS = 10.0
"""For the answers under way after that."""

LINGERING_SECONDS = 1.0
"""For the rest of a body that was refused: its sender is to hear why."""

Routes = Callable[[web.Application, Gateway], None]
"""Adds its routes, and what it needs to start and stop (app.on_startup, app.on_shutdown, app.cleanup_ctx)."""

_log = log.logger(component="server")


def application(gateway: Gateway, parts: Iterable[Routes]) -> web.Application:
    """The application with all of its parts' routes."""
    app = web.Application(client_max_size=BODY_LIMIT, middlewares=[_message])
    for routes in parts:
        routes(app, gateway)
    return app


@web.middleware
async def _message(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
    """What nobody foresaw is answered in words, without anything of our insides; the log has those."""
    try:
        answer = await handler(request)  # type: ignore[misc]
    except web.HTTPException:
        raise
    except Exception:
        _log.exception("unhandled exception in HTTP request", method=request.method, path=request.path[:200])
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "reason": "InternalError"}
        return web.json_response({**status, "message": "internal error: see the log of the gateway"}, status=500)
    assert isinstance(answer, web.StreamResponse)
    return answer


class HttpsServer:
    """Listens, and stops without refusing anybody."""

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
        """Whether `stop` was called: /readyz says so, and the Service sends nobody here any more."""
        return self._stopping

    async def start(self, port: int, host: str | None = None) -> int:
        """Starts listening; returns the port."""
        await self._runner.setup()
        await GuardedSite(self._runner, port, host, ssl_context=self._context, limits=self._limits).start()
        return int(self._runner.addresses[0][1])

    async def stop(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Serves on for a while, for those who have not heard yet; then ends what is still open."""
        self._stopping = True
        await asyncio.sleep(drain_seconds)
        await self._runner.cleanup()

    async def _part(self, _request: web.Request, response: web.StreamResponse) -> None:
        if self._stopping and not isinstance(response, web.WebSocketResponse):
            # The client opens its next connection, and finds a replica that stays.
            response.headers["Connection"] = "close"
            response.force_close()
