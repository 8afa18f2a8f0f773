"""Maps the API server's Status responses and transport errors to `api.errors`."""

from typing import Any

import msgspec

from api import errors
from api.errors import Fault, HyperletError


class _Cause(msgspec.Struct, gc=False):
    reason: str = ""
    message: str = ""
    field: str = ""


class _Details(msgspec.Struct, gc=False):
    name: str = ""
    causes: list[_Cause] | None = None


class Status(msgspec.Struct, gc=False):
    """The body of an error response (meta/v1 Status)."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


MESSAGE_LIMIT = 2000
"""Maximum length of a message in characters: admission webhooks may send long texts."""


def parse(code: int, body: bytes) -> Status:
    """The Status in `body`; if it is not one, such as a proxy's response, a Status with the text as its message."""
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


def error_of(status: Status, retry_seconds: float = 0.0) -> HyperletError:
    """The `api.errors` exception for a Status. `retry_seconds`: what Retry-After asked for."""
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
            return errors.ApiUnavailable(status.message, retry_seconds)


def transport_error(error: BaseException, what: str) -> HyperletError:
    """The exception for a request without a response. `what` is the verb and path."""
    text: Any = str(error) or type(error).__name__
    return errors.ApiUnavailable(f"{what}: {text}")
