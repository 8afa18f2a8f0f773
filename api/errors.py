"""Exceptions, wrapped once at the boundary where they occur.

Each class has the CamelCase reason for conditions and Events.
"""

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

MAX_FAULTS = 101
"""Maximum number of faults collected per document: 100 are reported, one more indicates truncation."""


class Fault(NamedTuple):
    """One validation error. `path` is the JSON path from the object's root, such as `spec.running`."""

    path: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class HyperletError(Exception):
    """Base of hyperlet's exceptions. `reason` is CamelCase."""

    reason: ClassVar[str] = "InternalError"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidObject(HyperletError):
    """The object is invalid. `faults` has all faults with their paths."""

    reason = "InvalidObject"

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(map(str, self.faults)))


class NotFound(HyperletError):
    """The object does not exist."""

    reason = "NotFound"


class Conflict(HyperletError):
    """The object was changed concurrently, or already exists: read it again."""

    reason = "Conflict"


class AlreadyExists(Conflict):
    """An object with that name already exists."""

    reason = "AlreadyExists"


class Expired(HyperletError):
    """The resourceVersion has expired (410): list again."""

    reason = "Expired"


class ApiUnavailable(HyperletError):
    """The API server did not respond, or responded with 429 or 5xx.

    `retry_seconds`: how long it asks to wait before a retry; 0 if it does not say.
    """

    reason = "ApiUnavailable"

    def __init__(self, message: str, retry_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class Forbidden(HyperletError):
    """Refused by quota, admission or RBAC. Retried: an administrator may lift the refusal.

    `causes` are the reasons in the Status details, if any, such as NodeCapacity.
    """

    reason = "Forbidden"

    def __init__(self, message: str, causes: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.causes = tuple(causes)


class LauncherUnavailable(HyperletError):
    """The launcher does not respond on its socket."""

    reason = "LauncherUnavailable"


class ImagePullFailed(HyperletError):
    """A container disk or kernel image cannot be pulled, or does not contain a disk."""

    reason = "ImagePullFailed"


class VolumeError(HyperletError):
    """A volume is missing, unusable or invalid."""

    reason = "VolumeError"


class NetworkError(HyperletError):
    """The VM's network cannot be set up."""

    reason = "NetworkError"
