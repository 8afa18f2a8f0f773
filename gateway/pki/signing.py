"""`POST /sign`: signs a handler's certificate, for its own node only.

The handler authenticates with its service account token, which is bound to its pod. The identity is taken from a
TokenReview, the node from the Pod object; of the signing request only the public key is used.
"""

import asyncio

from aiohttp import web

from api import names
from api.errors import Forbidden, HyperletError, NotFound
from api.k8s.meta import Struct
from api.k8s.objects import K8sObject, Pod
from api.k8s.resource import Resource
from gateway.context import Gateway
from gateway.http.request_bodies import RequestBodies
from gateway.http.status import StatusError, bad_request, forbidden, unavailable
from kit import log, tls

PATH = "/sign"
TOKEN_LIMIT = 16 << 10
REQUEST_LIMIT = 16 << 10
PARALLEL = 8
"""Maximum number of concurrent requests: each costs two API calls, and clients are not authenticated yet."""
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
"""Keys of a bound token's pod in TokenReview's status.user.extra."""

_log = log.logger(component="sign")


class TokenUser(Struct):
    """The user of a token."""

    username: str = ""
    extra: dict[str, list[str]] | None = None


class TokenReviewStatus(Struct):
    """Status of a TokenReview."""

    authenticated: bool = False
    user: TokenUser = TokenUser()
    audiences: list[str] | None = None
    error: str | None = None


class TokenReview(K8sObject):
    """See authentication.k8s.io/v1."""

    RESOURCE = Resource("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", namespaced=False)

    status: TokenReviewStatus = TokenReviewStatus()


def routes(app: web.Application, gateway: Gateway) -> None:
    """Adds the endpoint."""
    turns, bodies = asyncio.Semaphore(PARALLEL), RequestBodies()

    async def sign(request: web.Request) -> web.Response:
        return await _sign(request, gateway, turns, bodies)

    app.router.add_post(PATH, sign)


async def _sign(
    request: web.Request, gateway: Gateway, turns: asyncio.Semaphore, bodies: RequestBodies
) -> web.Response:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > TOKEN_LIMIT:
        raise StatusError(401, "Unauthorized", "a service account token is required (Authorization: Bearer)")
    if not 0 < (request.content_length or 0) <= REQUEST_LIMIT:
        raise StatusError(413, "RequestEntityTooLarge", f"Content-Length must be between 1 and {REQUEST_LIMIT} bytes")
    # Read the body before taking the semaphore: a slow client must not block others.
    body = await bodies.read(request, REQUEST_LIMIT)
    if turns.locked():
        raise unavailable("too many signing requests: try again")
    async with turns:
        try:
            public = tls.requested_key(body)
            node = await node_of(gateway, token)
        except tls.TlsError as error:
            raise bad_request(str(error)) from error
        except Forbidden as error:
            _log.warning("refused a certificate signing request", why=error.message)
            raise forbidden(error.message) from error
        except HyperletError as error:
            _log.warning("cannot sign a certificate: the API server is unavailable", why=error.message)
            raise unavailable("the API server is unavailable, cannot verify the token: try again") from error
    if not gateway.certificates.ready:
        raise unavailable("the certificate authorities are not loaded yet: try again")
    signed = gateway.certificates.sign_node(public, node)
    _log.info("signed a handler certificate", node=node)
    return web.json_response({"certificate": signed.certificate.decode(), "roots": signed.roots.decode()})


async def node_of(gateway: Gateway, token: str) -> str:
    """The node of the handler pod that the token is bound to. Raises Forbidden for any other token."""
    spec = {"token": token, "audiences": [names.GATEWAY_AUDIENCE]}
    review = await gateway.kube.create(TokenReview, {"metadata": {}, "spec": spec})
    status = review.status
    if not status.authenticated or names.GATEWAY_AUDIENCE not in (status.audiences or ()):
        raise Forbidden(f"the token is not valid for the audience {names.GATEWAY_AUDIENCE}")
    account = f"system:serviceaccount:{gateway.namespace}:{names.HANDLER_ACCOUNT}"
    if status.user.username != account:
        raise Forbidden(f"{status.user.username[:200]} is not {account}")
    extra = status.user.extra or {}
    name, uid = _single(extra, POD_NAME), _single(extra, POD_UID)
    if not name or not uid:
        raise Forbidden("the token is not bound to a pod")
    try:
        pod = await gateway.kube.get(Pod, gateway.namespace, name)
    except NotFound:
        raise Forbidden(f"the token's pod {name} does not exist") from None
    if pod.metadata.uid != uid:
        raise Forbidden(f"the token's pod {name} does not exist: another pod has its name")
    if pod.spec.serviceAccountName != names.HANDLER_ACCOUNT or not pod.spec.nodeName:
        raise Forbidden(f"the token's pod {name} is not a handler on a node")
    return pod.spec.nodeName


def _single(extra: dict[str, list[str]], key: str) -> str:
    values = extra.get(key) or []
    return values[0] if len(values) == 1 else ""
