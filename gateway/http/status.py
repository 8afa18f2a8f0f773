"""Errors of the gateway: exceptions that become Kubernetes `Status` objects.

The messages of 404, 409 and 400 are those of k8s.io/apimachinery (pkg/api/errors), which KubeVirt clients show
unchanged.
"""

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from api import errors, names
from api.errors import Fault, HyperletError
from api.k8s.meta import Json
from api.text import printable

MESSAGE_LIMIT = 2000
"""Maximum length of a message: those of nodes and webhooks are unbounded."""
RETRY_SECONDS = 2
"""Retry-After of temporary errors."""


class StatusError(Exception):
    """An error response."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: dict[str, Any] | None = None,
        retry_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = readable(message)
        self.details = details or {}
        self.retry_seconds = retry_seconds

    def response(self) -> web.Response:
        """The HTTP response."""
        headers = {}
        details = dict(self.details)
        if self.retry_seconds is not None:
            headers["Retry-After"] = str(self.retry_seconds)
            details["retryAfterSeconds"] = self.retry_seconds
        if self.code == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="kubernetes"'
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if details:
            body["details"] = details
        return web.json_response(body, status=self.code, headers=headers)


def readable(text: str) -> str:
    """One line without control characters, truncated to MESSAGE_LIMIT: text may come from guests and users."""
    return printable(text, MESSAGE_LIMIT)


def _kind(kind: str) -> str:
    """The resource as in KubeVirt's messages: `virtualmachine`."""
    return kind.lower()


def _about(kind: str, name: str) -> dict[str, Any]:
    return {"name": name, "group": names.GROUP, "kind": _kind(kind)}


def not_found(kind: str, name: str) -> StatusError:
    """404: the object does not exist."""
    return StatusError(404, "NotFound", f'{_kind(kind)}.{names.GROUP} "{name}" not found', _about(kind, name))


def conflict(kind: str, name: str, why: str) -> StatusError:
    """409: the object's state does not allow the operation."""
    message = f'Operation cannot be fulfilled on {_kind(kind)}.{names.GROUP} "{name}": {why}'
    return StatusError(409, "Conflict", message, _about(kind, name))


def forbidden(message: str, details: dict[str, Any] | None = None) -> StatusError:
    """403: the user is not permitted."""
    return StatusError(403, "Forbidden", message, details)


def unauthorized(why: str) -> StatusError:
    """401: unauthenticated."""
    return StatusError(401, "Unauthorized", f"Unauthorized: {why}")


def causes_of(faults: Iterable[Fault]) -> list[Json]:
    """The causes in the details of a Status."""
    return [{"reason": fault.reason, "field": fault.path, "message": fault.message} for fault in faults]


def bad_request(message: str, faults: Iterable[Fault] = ()) -> StatusError:
    """400: the request is invalid."""
    causes = causes_of(faults)
    return StatusError(400, "BadRequest", message, {"causes": causes} if causes else None)


def not_implemented(what: str) -> StatusError:
    """501: part of the KubeVirt API, but not implemented."""
    return StatusError(501, "NotImplemented", what)


def unavailable(message: str) -> StatusError:
    """503: temporarily unavailable, with Retry-After."""
    return StatusError(503, "ServiceUnavailable", message, retry_seconds=RETRY_SECONDS)


def too_many(message: str) -> StatusError:
    """429: a limit is exceeded."""
    return StatusError(429, "TooManyRequests", message, retry_seconds=RETRY_SECONDS)


def too_large(message: str) -> StatusError:
    """502: invalid response of a guest, QEMU or a node."""
    return StatusError(502, "BadGateway", message)


def internal(message: str) -> StatusError:
    """500: unexpected error."""
    return StatusError(500, "InternalError", f"Internal error occurred: {message}")


def from_api_error(error: HyperletError, kind: str, name: str) -> StatusError:
    """Maps an error of the API server to a Status."""
    match error:
        case errors.NotFound():
            return not_found(kind, name)
        case errors.Conflict():
            return conflict(kind, name, error.message)
        case errors.InvalidObject():
            details = {**_about(kind, name), "causes": causes_of(error.faults)}
            return StatusError(422, "Invalid", error.message, details)
        case errors.Forbidden():
            return forbidden(error.message, _about(kind, name))
        case _:
            return unavailable(f"The API server is unavailable: {error.message}")
