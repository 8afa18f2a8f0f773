"""The aggregated API `subresources.kubevirt.io`: verbs, consoles and ports of virtual machines."""

from aiohttp import web

from gateway.context import Gateway


def routes(app: web.Application, gateway: Gateway) -> None:
    """Adds the aggregated API to the gateway's application."""
    # Local import, to avoid an import cycle.
    from gateway.subresources import dispatch

    dispatch.routes(app, gateway)
