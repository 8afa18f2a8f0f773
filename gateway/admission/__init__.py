"""Admission: what the API server asks before it stores an object of ours."""

from collections.abc import Callable, Sequence

from aiohttp import web

from api.errors import Fault
from gateway.admission import kinds, review
from gateway.admission.pod_security import PodSecurity
from gateway.admission.review import BadReview, Request, Verdict
from gateway.context import Gateway

MUTATE = "/admission/mutate"
VALIDATE = "/admission/validate"


def routes(app: web.Application, gateway: Gateway) -> None:
    """Adds the two endpoints."""
    namespaces = PodSecurity(gateway.kube)

    async def mutate(request: web.Request) -> web.Response:
        return await _answer(
            request,
            namespaces,
            lambda asked, more: kinds.mutate(asked, gateway.configuration(), gateway.namespace, more),
        )

    async def validate(request: web.Request) -> web.Response:
        return await _answer(
            request,
            namespaces,
            lambda asked, more: kinds.validate(asked, gateway.configuration(), gateway.namespace, more),
        )

    app.router.add_post(MUTATE, mutate)
    app.router.add_post(VALIDATE, validate)


async def _answer(
    request: web.Request, namespaces: PodSecurity, decide: Callable[[Request, Sequence[Fault]], Verdict]
) -> web.Response:
    try:
        asked = review.parse(await request.read())
        body = review.answer(asked, decide(asked, await namespaces.faults(asked)))
    except BadReview as error:
        return web.Response(status=400, text=f"{error}\n")
    except RecursionError:
        return web.Response(status=400, text="the object is nested more deeply than any that is stored\n")
    return web.Response(body=body, content_type="application/json")
