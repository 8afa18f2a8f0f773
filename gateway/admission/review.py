"""AdmissionReview (admission.k8s.io/v1): requests and responses.

Source: k8s.io/api/admission/v1. A refusal has a Status with every fault as a cause, which the API server passes to
the user unchanged; kubectl prints each cause with its path.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from api.errors import Fault
from api.k8s.meta import Struct
from gateway.http.status import causes_of

API_VERSION, KIND = "admission.k8s.io/v1", "AdmissionReview"
FAULT_LIMIT = 100
"""Maximum number of reported faults."""
VALUES = 50_000
"""Maximum number of values in an object, except from components: decoding time is proportional to it."""
PATH_LIMIT = 512
"""Maximum length of a fault's path, and of its message."""
MESSAGE_LIMIT = 4096
"""Maximum length of the summary, which some clients show instead of the causes."""
WARNING_LIMIT = 256
"""Maximum length of a warning: the API server drops longer ones (4096 for all warnings)."""
CODE_INVALID = 422


class BadReview(Exception):
    """The request body is not a valid AdmissionReview."""


class GroupVersionKind(Struct):
    """A kind."""

    group: str = ""
    version: str = ""
    kind: str = ""


class UserInfo(Struct):
    """The requesting user."""

    username: str = ""
    uid: str | None = None
    groups: list[str] | None = None
    extra: dict[str, list[str]] | None = None


class AdmissionRequest(Struct):
    """The request in an AdmissionReview."""

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

    trouble: str = ""
    """Why `object` and `oldObject` were not decoded; empty when they were."""


class _Undecoded(AdmissionRequest):
    object: msgspec.Raw = msgspec.Raw(b"null")  # type: ignore[assignment]
    oldObject: msgspec.Raw = msgspec.Raw(b"null")  # type: ignore[assignment]


class _Review(Struct):
    request: _Undecoded
    apiVersion: str = ""
    kind: str = ""


class AdmissionDecision(Struct):
    """The decision on a request: refused if there are faults. `patch` is a JSON patch."""

    faults: Sequence[Fault] = ()
    warnings: Sequence[str] = ()
    patch: Sequence[dict[str, Any]] = ()


class AdmissionRefusal(NamedTuple):
    """A refusal with its own code and reason, not caused by the object."""

    code: int
    reason: str
    message: str


_decoder = msgspec.json.Decoder(_Review)
# All bytes except those that precede a value in an object or list. They also occur in strings, so the count is an
# upper bound.
_NO_VALUES = bytes(set(range(256)) - set(b",[{"))


def parse(body: bytes, unbounded: Callable[[AdmissionRequest], bool] = lambda _: False) -> AdmissionRequest:
    """Parses an AdmissionReview. Raises BadReview.

    An object with more than VALUES values is decoded only if `unbounded` returns true.
    """
    try:
        review = _decoder.decode(body)
    except RecursionError as error:
        # Respond with a refusal: with failurePolicy Ignore, an error would allow the object.
        uid = _UID.search(body[:1024])
        if uid is None:
            raise BadReview(f"not an AdmissionReview: {_TOO_DEEP}") from error
        return AdmissionRequest(uid=uid[1].decode(), object={}, trouble=_TOO_DEEP)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadReview(f"not an AdmissionReview: {error}") from error
    if review.kind != KIND or review.apiVersion != API_VERSION:
        raise BadReview(f"not an {KIND} of {API_VERSION}")
    found = review.request
    request = AdmissionRequest(
        **{name: getattr(found, name) for name in _ENVELOPE},
    )
    new, old = bytes(found.object), bytes(found.oldObject)
    if not unbounded(request) and max(_values(new), _values(old)) > VALUES:
        request = msgspec.structs.replace(request, object={}, oldObject=None if old == b"null" else {})
        return msgspec.structs.replace(request, trouble=f"must have at most {VALUES} values")
    try:
        return msgspec.structs.replace(request, object=_documents.decode(new), oldObject=_documents.decode(old))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadReview(f"not an AdmissionReview: {error}") from error
    except RecursionError:
        return msgspec.structs.replace(request, object={}, trouble=_TOO_DEEP)


_UID = re.compile(rb'"uid": ?"([0-9a-zA-Z-]{1,64})"')
_TOO_DEEP = "the object is nested too deeply"
_ENVELOPE = tuple(name for name in AdmissionRequest.__struct_fields__ if name not in ("object", "oldObject", "trouble"))


def _values(raw: bytes) -> int:
    return len(raw.translate(None, _NO_VALUES))


_documents = msgspec.json.Decoder(dict[str, Any] | None)


def answer(request: AdmissionRequest, verdict: AdmissionDecision) -> bytes:
    """Encodes the AdmissionReview response."""
    response: dict[str, Any] = {"uid": request.uid, "allowed": not verdict.faults}
    if verdict.faults:
        response["status"] = _status(request, verdict.faults)
    elif verdict.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = b64encode(msgspec.json.encode(verdict.patch)).decode()
    if verdict.warnings:
        response["warnings"] = [text[:WARNING_LIMIT] for text in verdict.warnings]
    return _review(response)


def refused(request: AdmissionRequest, refusal: AdmissionRefusal | None) -> bytes:
    """Encodes an AdmissionReview that allows a request, or refuses it with a code."""
    response: dict[str, Any] = {"uid": request.uid, "allowed": refusal is None}
    if refusal is not None:
        response["status"] = {
            "status": "Failure",
            "code": refusal.code,
            "reason": refusal.reason,
            "message": refusal.message[:MESSAGE_LIMIT],
        }
    return _review(response)


def _review(response: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"apiVersion": API_VERSION, "kind": KIND, "response": response})


def _cut(text: str) -> str:
    return text if len(text) <= PATH_LIMIT else text[: PATH_LIMIT - 1] + "…"


def _status(request: AdmissionRequest, faults: Sequence[Fault]) -> dict[str, Any]:
    shown = [Fault(_cut(fault.path), fault.reason, _cut(fault.message)) for fault in faults[:FAULT_LIMIT]]
    message = "; ".join(map(str, shown)) + ("; and more faults" if len(faults) > FAULT_LIMIT else "")
    return {
        "status": "Failure",
        "reason": "Invalid",
        "code": CODE_INVALID,
        "message": message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1] + "…",
        "details": {
            "name": request.name or "",
            "group": request.kind.group,
            "kind": request.kind.kind,
            "causes": causes_of(shown),
        },
    }
