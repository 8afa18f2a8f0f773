"""AdmissionReview (admission.k8s.io/v1): what the API server asks, and what it is answered.

Source: k8s.io/api/admission/v1. A refusal carries a Status with every fault as a cause, which the API server hands on
to the user as it is; kubectl prints each cause with its path.
"""

from base64 import b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from api.errors import Fault
from api.meta import Struct

FAULT_LIMIT = 100
"""Faults told of one object."""
MESSAGE_LIMIT = 4096
"""Characters of the summary, which some clients show instead of the causes."""
WARNING_LIMIT = 256
"""Characters of a warning: the API server drops what is longer (all of them together: 4096)."""
CODE_INVALID = 422


class BadReview(Exception):
    """What was sent is no AdmissionReview. The text says why."""


class GroupVersionKind(Struct):
    """A kind."""

    group: str = ""
    version: str = ""
    kind: str = ""


class UserInfo(Struct):
    """Who asks for the change."""

    username: str = ""
    uid: str | None = None
    groups: list[str] | None = None
    extra: dict[str, list[str]] | None = None


class Request(Struct):
    """One change that is to be admitted."""

    uid: str
    operation: str = ""
    kind: GroupVersionKind = GroupVersionKind()
    name: str | None = None
    namespace: str | None = None
    subResource: str | None = None
    userInfo: UserInfo = UserInfo()
    dryRun: bool = False
    object: dict[str, Any] | None = None
    oldObject: dict[str, Any] | None = None


class _Review(Struct):
    request: Request
    apiVersion: str = ""
    kind: str = ""


class Verdict(Struct):
    """What is decided about a request. `patch` is a JSON patch; refused is what has faults."""

    faults: Sequence[Fault] = ()
    warnings: Sequence[str] = ()
    patch: Sequence[dict[str, Any]] = ()


class Refusal(NamedTuple):
    """An answer of its own code and reason, where nothing is wrong with the object."""

    code: int
    reason: str
    message: str


_decoder = msgspec.json.Decoder(_Review)


def parse(body: bytes) -> Request:
    """The request in an AdmissionReview. Raises BadReview."""
    try:
        review = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadReview(f"this is no AdmissionReview: {error}") from error
    if review.kind != "AdmissionReview" or review.apiVersion != "admission.k8s.io/v1":
        raise BadReview("this is no AdmissionReview of admission.k8s.io/v1")
    return review.request


def answer(request: Request, verdict: Verdict) -> bytes:
    """The AdmissionReview that answers a request."""
    response: dict[str, Any] = {"uid": request.uid, "allowed": not verdict.faults}
    if verdict.faults:
        response["status"] = _status(request, verdict.faults)
    elif verdict.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = b64encode(msgspec.json.encode(verdict.patch)).decode()
    if verdict.warnings:
        response["warnings"] = [text[:WARNING_LIMIT] for text in verdict.warnings]
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
    return msgspec.json.encode(review)


def refused(request: Request, refusal: Refusal | None) -> bytes:
    """The AdmissionReview that allows a request, or refuses it with a code."""
    response: dict[str, Any] = {"uid": request.uid, "allowed": refusal is None}
    if refusal is not None:
        response["status"] = {
            "status": "Failure",
            "code": refusal.code,
            "reason": refusal.reason,
            "message": refusal.message[:MESSAGE_LIMIT],
        }
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
    return msgspec.json.encode(review)


def _status(request: Request, faults: Sequence[Fault]) -> dict[str, Any]:
    told = faults[:FAULT_LIMIT]
    left = len(faults) - len(told)
    message = "; ".join(map(str, told)) + (f"; and {left} more" if left else "")
    return {
        "status": "Failure",
        "reason": "Invalid",
        "code": CODE_INVALID,
        "message": message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1] + "…",
        "details": {
            "name": request.name or "",
            "group": request.kind.group,
            "kind": request.kind.kind,
            "causes": [{"reason": fault.reason, "message": fault.message, "field": fault.path} for fault in told],
        },
    }
