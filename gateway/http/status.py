"""Refusals of the aggregated API: exceptions that become `Status` objects as the Kubernetes API writes them.

The wording of conflicts, missing objects and bad requests is that of k8s.io/apimachinery (pkg/api/errors), which
clients of the published API show to people as it is.
"""

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from api import errors, names
from api.errors import Fault, HyperletError

MESSAGE_LIMIT = 2000
"""Characters of a message: what a node or a webhook says may be a novel."""
RETRY_SECONDS = 2
"""What clients are told to wait when something is away for the moment."""


class StatusError(Exception):
    """A request is answered with this Status instead of what was asked for."""

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
        """The answer over HTTP."""
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
    """One line without control characters, cut to MESSAGE_LIMIT: some of it comes from guests and users."""
    return "".join(char if char.isprintable() else " " for char in text[:MESSAGE_LIMIT])


def _kind(kind: str) -> str:
    """The resource as the published messages spell it: `virtualmachine`."""
    return kind.lower()


def _about(kind: str, name: str) -> dict[str, Any]:
    return {"name": name, "group": names.GROUP, "kind": _kind(kind)}


def not_found(kind: str, name: str) -> StatusError:
    """404: there is no such object."""
    return StatusError(404, "NotFound", f'{_kind(kind)}.{names.GROUP} "{name}" not found', _about(kind, name))


def conflict(kind: str, name: str, why: str) -> StatusError:
    """409: the object's state does not allow it."""
    message = f'Operation cannot be fulfilled on {_kind(kind)}.{names.GROUP} "{name}": {why}'
    return StatusError(409, "Conflict", message, _about(kind, name))


def forbidden(message: str, details: dict[str, Any] | None = None) -> StatusError:
    """403: the user may not."""
    return StatusError(403, "Forbidden", message, details)


def unauthorized(why: str) -> StatusError:
    """401: nobody vouches for who is asking."""
    return StatusError(401, "Unauthorized", f"Unauthorized: {why}")


def bad_request(message: str, faults: Iterable[Fault] = ()) -> StatusError:
    """400: the request itself is wrong."""
    causes = [{"reason": fault.reason, "field": fault.path, "message": fault.message} for fault in faults]
    return StatusError(400, "BadRequest", message, {"causes": causes} if causes else None)


def not_implemented(what: str) -> StatusError:
    """501: published, but the feature is not there yet."""
    return StatusError(501, "NotImplemented", what)


def unavailable(message: str) -> StatusError:
    """503: try again in a moment."""
    return StatusError(503, "ServiceUnavailable", message, retry_seconds=RETRY_SECONDS)


def too_many(message: str) -> StatusError:
    """429: a limit is reached."""
    return StatusError(429, "TooManyRequests", message, retry_seconds=RETRY_SECONDS)


def too_large(message: str) -> StatusError:
    """502: what lies beyond us, a guest or its QEMU, answers nothing that makes sense."""
    return StatusError(502, "BadGateway", message)


def internal(message: str) -> StatusError:
    """500: something that should not happen did."""
    return StatusError(500, "InternalError", f"Internal error occurred: {message}")


def from_api_error(error: HyperletError, kind: str, name: str) -> StatusError:
    """What the API server's refusal means to the one who asked us."""
    match error:
        case errors.NotFound():
            return not_found(kind, name)
        case errors.Conflict():
            return conflict(kind, name, error.message)
        case errors.InvalidObject():
            causes = [{"reason": f.reason, "field": f.path, "message": f.message} for f in error.faults]
            return StatusError(422, "Invalid", error.message, {**_about(kind, name), "causes": causes})
        case errors.Forbidden():
            return forbidden(error.message, _about(kind, name))
        case _:
            return unavailable(f"The API server is unavailable: {error.message}")
