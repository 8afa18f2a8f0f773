"""HTTP endpoints of the admission webhooks."""

from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from api.errors import Fault
from api.kubevirt.configuration import KubeVirtConfiguration
from gateway.admission import eviction, kinds, ownership, review, size_limits
from gateway.admission.pod_security import PodSecurity
from gateway.admission.review import AdmissionDecision, AdmissionRequest, BadReview
from gateway.context import Gateway
from gateway.http.request_bodies import RequestBodies

MUTATE = "/admission/mutate"
VALIDATE = "/admission/validate"
EVICT = "/admission/evict"
Decide = Callable[[AdmissionRequest, KubeVirtConfiguration, str, Sequence[Fault]], AdmissionDecision]
BODY_LIMIT = 8 << 20
"""Maximum size of a review in bytes: objects have up to 3 MiB, and a review of an update has two."""


def routes(app: web.Application, gateway: Gateway) -> None:
    """Adds the three endpoints."""
    namespaces, bodies = PodSecurity(gateway.kube), RequestBodies()

    def deciding(decide: Decide) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            return await _answer(request, bodies, namespaces, gateway, decide)

        return handle

    async def evict(request: web.Request) -> web.Response:
        try:
            asked = review.parse(await bodies.read(request, BODY_LIMIT))
        except (BadReview, RecursionError) as error:
            return web.Response(status=400, text=f"{error}\n")
        found = await eviction.refusal(gateway.kube, gateway.configuration(), asked)
        return web.Response(body=review.refused(asked, found), content_type="application/json")

    app.router.add_post(EVICT, evict)
    app.router.add_post(MUTATE, deciding(kinds.mutate))
    app.router.add_post(VALIDATE, deciding(kinds.validate))


def quick_checks(body: bytes, namespace: str) -> tuple[AdmissionRequest, AdmissionDecision | None]:
    """The request, and a refusal if it exceeds the size limits. Raises BadReview, RecursionError."""
    asked = review.parse(body, lambda who: ownership.is_component(who, namespace))
    found = [] if ownership.is_component(asked, namespace) else size_limits.faults(asked)
    return asked, AdmissionDecision(faults=found) if found else None


async def _answer(
    request: web.Request,
    bodies: RequestBodies,
    namespaces: PodSecurity,
    gateway: Gateway,
    decide: Decide,
) -> web.Response:
    try:
        asked, verdict = quick_checks(await bodies.read(request, BODY_LIMIT), gateway.namespace)
        more = () if verdict else await namespaces.faults(asked)
        body = review.answer(asked, verdict or decide(asked, gateway.configuration(), gateway.namespace, more))
    except BadReview as error:
        return web.Response(status=400, text=f"{error}\n")
    except RecursionError:
        return web.Response(status=400, text="the object is nested too deeply\n")
    return web.Response(body=body, content_type="application/json")
