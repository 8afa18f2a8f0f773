"""Routes of the aggregated API: authentication, authorization, dispatch to the endpoint; errors become a Status."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from api import names
from gateway.context import Gateway
from gateway.handler_connections import HandlerConnections
from gateway.http.authentication import FrontProxy
from gateway.http.authorization import Attributes, Authorizer
from gateway.http.status import StatusError
from gateway.http.websockets import WebSocketStreams, limit_buffers
from gateway.subresources import discovery, openapi
from gateway.subresources.endpoints import ENDPOINTS, VERSIONS, Endpoint
from gateway.subresources.request import Services, SubresourceRequest, check_names
from gateway.subresources.version import ApiServerHealth, version_info

ROOT = f"/apis/{names.SUBRESOURCE_GROUP}"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
SERVICES = web.AppKey("subresources", Services)


def routes(app: web.Application, gateway: Gateway) -> None:
    """Adds the aggregated API to the gateway's application."""
    limit_buffers()
    services = Services(
        kube=gateway.kube,
        nodes=HandlerConnections(gateway.kube, gateway.namespace, gateway.certificates),
        streams=WebSocketStreams(),
        front_proxy=FrontProxy(gateway.kube, gateway.certificates),
        authorizer=Authorizer(gateway.kube),
    )
    add(app, services)


def add(app: web.Application, services: Services) -> None:
    """Adds routes that use these services, which are started and stopped with the application."""
    app[SERVICES] = services
    _public(app, services)
    for version in VERSIONS:
        for endpoint in ENDPOINTS:
            path = endpoint.path(version)
            app.router.add_route(endpoint.method, path, _guarded(_answer(endpoint, version, services)))
        for path in {endpoint.path(version) for endpoint in ENDPOINTS}:
            app.router.add_route("*", path, _guarded(_other_method(services)))
    # Only authenticated users get a 404.
    app.router.add_route("*", ROOT + "/{tail:.*}", _guarded(_unknown(services)))
    app.cleanup_ctx.append(lambda _: _running(services))
    app.on_shutdown.append(lambda _: services.streams.stop())


def trouble(app: web.Application) -> str | None:
    """Why the aggregated API is not ready, for the readiness check; None when ready."""
    services = app[SERVICES]
    return services.front_proxy.trouble() or services.nodes.trouble()


async def _running(services: Services) -> AsyncIterator[None]:
    services.front_proxy.start()
    services.nodes.start()
    yield
    await services.front_proxy.stop()
    await services.nodes.close()


# ---- unauthenticated ------------------------------------------------------------------------------------------------


def _public(app: web.Application, services: Services) -> None:
    health = ApiServerHealth(services.kube)
    _get(app, "/", _document(discovery.root()))
    _get(app, "/apis", _document(discovery.groups()))
    _get(app, ROOT, _document(discovery.group()))
    _get(app, "/healthz", health.answer)
    _get(app, "/openapi/v2", _document(openapi.version2()))
    _get(app, "/openapi/v3", _document(openapi.index3()))
    for version in VERSIONS:
        _get(app, f"{ROOT}/{version}", _document(discovery.resources(version)))
        _get(app, f"{ROOT}/{version}/version", _document(version_info()))
        _get(app, f"{ROOT}/{version}/healthz", health.answer)
        _get(app, f"{ROOT}/{version}/guestfs", _guestfs)
        _get(app, f"/openapi/v3{ROOT}/{version}", _document(openapi.version3(version)))


def _get(app: web.Application, path: str, answer: Answer) -> None:
    app.router.add_route("GET", path, _guarded(answer))
    if path != "/":
        app.router.add_route("GET", path + "/", _guarded(answer))


def _document(body: dict[str, Any]) -> Answer:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response(body)

    return answer


async def _guestfs(_request: web.Request) -> web.StreamResponse:
    """501 as text: virtctl does not parse a Status here, but shows a body of type text/*."""
    message = "guestfs tools are not implemented yet: mount the PersistentVolumeClaim in a pod instead"
    return web.Response(status=501, text=message)


# ---- authorized -----------------------------------------------------------------------------------------------------


def _answer(endpoint: Endpoint, version: str, services: Services) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        user = services.front_proxy.user(request)
        namespace, name = request.match_info["namespace"], request.match_info.get("name", "")
        check_names(namespace, name)
        wanted = Attributes(
            verb=endpoint.verb,
            namespace=namespace,
            resource=endpoint.resource,
            name=name,
            subresource=endpoint.subresource,
            version=version,
        )
        await services.authorizer.require(user, wanted)
        return await endpoint.handle(SubresourceRequest(request, services, user, namespace, name))

    return answer


def _unknown(services: Services) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        services.front_proxy.user(request)
        raise StatusError(404, "NotFound", "the server could not find the requested resource")

    return answer


def _other_method(services: Services) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        services.front_proxy.user(request)
        raise StatusError(405, "MethodNotAllowed", f"{request.method} is not supported by this subresource")

    return answer


def _guarded(answer: Answer) -> Answer:
    """Wraps a handler: errors become a Status."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            return await answer(request)
        except StatusError as refusal:
            return refusal.response()

    return guarded
