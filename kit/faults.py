"""What the API server's refusals mean: its Status answers, and the transport's failures, as `api.errors`."""

from typing import Any

import msgspec

from api import errors
from api.errors import Fault, HyperletError


class _Cause(msgspec.Struct, gc=False):
    reason: str = ""
    message: str = ""
    field: str = ""


class _Details(msgspec.Struct, gc=False):
    causes: list[_Cause] | None = None
    retryAfterSeconds: int | None = None


class Status(msgspec.Struct, gc=False):
    """The body of every refusal (meta/v1 Status)."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


MESSAGE_LIMIT = 2000
"""Characters kept of a message: an admission webhook may answer with a novel."""


def parse(code: int, body: bytes) -> Status:
    """The Status in `body`; one made of the text itself where a proxy answered instead of the API server."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        status = Status(message=body[:MESSAGE_LIMIT].decode(errors="replace").strip())
    status.code = status.code or code
    status.message = (status.message or f"HTTP {code}")[:MESSAGE_LIMIT]
    return status


def _invalid(status: Status) -> HyperletError:
    causes = (status.details and status.details.causes) or []
    faults = [Fault(cause.field, cause.reason or "Invalid", cause.message) for cause in causes]
    return errors.InvalidObject(faults or [Fault("", status.reason or "Invalid", status.message)])


def error_of(status: Status) -> HyperletError:
    """The error that a Status stands for."""
    match status.code:
        case 404:
            return errors.NotFound(status.message)
        case 409 if status.reason == "AlreadyExists":
            return errors.AlreadyExists(status.message)
        case 409:
            return errors.Conflict(status.message)
        case 410:
            return errors.Expired(status.message)
        case 401 | 403:
            causes = (status.details and status.details.causes) or []
            return errors.Forbidden(status.message, (cause.reason for cause in causes))
        case 400 | 405 | 406 | 413 | 415 | 422:
            return _invalid(status)
        case _:
            return errors.ApiUnavailable(status.message)


def transport_error(error: BaseException, what: str) -> HyperletError:
    """A request that got no answer. `what` is the verb and path."""
    words: Any = str(error) or type(error).__name__
    return errors.ApiUnavailable(f"{what}: {words}")
