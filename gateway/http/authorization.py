"""Authorization of users by SubjectAccessReview, for the full subresource.

`virtualmachineinstances/vnc/screenshot` is checked with its full name, not as its parent `vnc`. Decisions are cached
for a few seconds, because user interfaces send many requests at once.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec

from api.errors import HyperletError
from api.k8s.resource import Resource
from gateway.http.authentication import User
from gateway.http.status import forbidden, unavailable
from kit.kube import Kube

ALLOWED_SECONDS = 4.0
"""How long an allowed decision is cached: the delay of a revocation."""
DENIED_SECONDS = 1.0
KEPT = 2048
"""Maximum number of cached decisions."""


class ReviewStatus(msgspec.Struct, frozen=True, gc=False):
    """The decision of the API server."""

    allowed: bool = False
    denied: bool = False
    reason: str = ""


class SubjectAccessReview(msgspec.Struct, frozen=True, gc=False):
    """A SubjectAccessReview response (authorization.k8s.io/v1)."""

    RESOURCE = Resource("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", namespaced=False)

    status: ReviewStatus = ReviewStatus()


@dataclass(frozen=True)
class Attributes:
    """Verb and resource of a request. `subresource` is the full name: `vnc/screenshot`."""

    verb: str
    namespace: str
    resource: str
    name: str = ""
    subresource: str = ""
    group: str = "subresources.kubevirt.io"
    version: str = "v1"

    @property
    def full(self) -> str:
        """Resource and subresource as in RBAC rules."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class Authorizer:
    """Checks permissions, with a short-lived cache."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._kept: OrderedDict[tuple[User, Attributes], tuple[float, ReviewStatus]] = OrderedDict()

    async def require(self, user: User, wanted: Attributes) -> None:
        """Returns if the request is allowed. Raises StatusError: 403, or 503 when the API server is unavailable."""
        status = self._known(user, wanted)
        if status is None:
            status = await self._ask(user, wanted)
            self._keep(user, wanted, status)
        # As in k8s.io/apiserver, denied overrides allowed.
        if not status.allowed or status.denied:
            raise forbidden(_message(user, wanted, status.reason), _details(wanted))

    def _known(self, user: User, wanted: Attributes) -> ReviewStatus | None:
        kept = self._kept.get((user, wanted))
        if kept is None or kept[0] < asyncio.get_running_loop().time():
            return None
        return kept[1]

    def _keep(self, user: User, wanted: Attributes, status: ReviewStatus) -> None:
        seconds = ALLOWED_SECONDS if status.allowed and not status.denied else DENIED_SECONDS
        self._kept[user, wanted] = (asyncio.get_running_loop().time() + seconds, status)
        self._kept.move_to_end((user, wanted))
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    async def _ask(self, user: User, wanted: Attributes) -> ReviewStatus:
        try:
            answer = await self._kube.create(SubjectAccessReview, review(user, wanted))
        except HyperletError as error:
            raise unavailable(f"SubjectAccessReview for user {user.name!r} failed: {error.message}") from error
        return answer.status


def review(user: User, wanted: Attributes) -> dict[str, Any]:
    """The SubjectAccessReview to create."""
    return {
        "metadata": {},
        "spec": {
            "user": user.name,
            "uid": user.uid,
            "groups": list(user.groups),
            "extra": {key: list(values) for key, values in user.extra},
            "resourceAttributes": {
                "verb": wanted.verb,
                "group": wanted.group,
                "version": wanted.version,
                "resource": wanted.resource,
                "subresource": wanted.subresource,
                "namespace": wanted.namespace,
                "name": wanted.name,
            },
        },
    }


def _message(user: User, wanted: Attributes, reason: str) -> str:
    """The API server's message (k8s.io/apiserver, responsewriters.forbiddenMessage)."""
    subject = f'"{wanted.name}" ' if wanted.name else ""
    where = f' in the namespace "{wanted.namespace}"' if wanted.namespace else " at the cluster scope"
    words = (
        f"{wanted.resource}.{wanted.group} {subject}is forbidden: User {user.name!r} cannot {wanted.verb} resource "
        f'"{wanted.full}" in API group "{wanted.group}"{where}'
    )
    return f"{words}: {reason}" if reason else words


def _details(wanted: Attributes) -> dict[str, Any]:
    return {"name": wanted.name, "group": wanted.group, "kind": wanted.resource}
