"""The HTTPS server of the gateway: one aiohttp application that every part adds its routes to."""

from collections.abc import Callable, Iterable

from aiohttp import web

from gateway.context import Gateway

BODY_LIMIT = 8 << 20
"""Bytes of a request: the API server takes objects of up to 3 MiB, and a review of an update has two."""

Routes = Callable[[web.Application, Gateway], None]
"""Adds its routes, and what it needs to start and stop (app.on_startup, app.on_shutdown, app.cleanup_ctx)."""


def application(gateway: Gateway, parts: Iterable[Routes]) -> web.Application:
    """The application with all of its parts' routes."""
    app = web.Application(client_max_size=BODY_LIMIT)
    for routes in parts:
        routes(app, gateway)
    return app
