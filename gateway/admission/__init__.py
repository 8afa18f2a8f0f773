"""Admission: what the API server asks before it stores an object of ours."""

from collections.abc import Callable

from aiohttp import web

from gateway.admission import kinds, review
from gateway.admission.review import BadReview, Request, Verdict
from gateway.context import Gateway

MUTATE = "/admission/mutate"
VALIDATE = "/admission/validate"


def routes(app: web.Application, gateway: Gateway) -> None:
    """Adds the two endpoints."""

    async def mutate(request: web.Request) -> web.Response:
        return await _answer(request, lambda asked: kinds.mutate(asked, gateway.configuration(), gateway.namespace))

    async def validate(request: web.Request) -> web.Response:
        return await _answer(request, lambda asked: kinds.validate(asked, gateway.configuration(), gateway.namespace))

    app.router.add_post(MUTATE, mutate)
    app.router.add_post(VALIDATE, validate)


async def _answer(request: web.Request, decide: Callable[[Request], Verdict]) -> web.Response:
    try:
        asked = review.parse(await request.read())
        body = review.answer(asked, decide(asked))
    except BadReview as error:
        return web.Response(status=400, text=f"{error}\n")
    except RecursionError:
        return web.Response(status=400, text="the object is nested more deeply than any that is stored\n")
    return web.Response(body=body, content_type="application/json")
