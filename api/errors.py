"""What can go wrong, wrapped once at the border where it happens.

Each class carries the CamelCase reason for conditions and Events, the condition it sets on the object that is being
worked on, and whether trying again can help.
"""

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

MAX_FAULTS = 101
"""Faults of one document that are looked for: a person is told a hundred of them, and that there are more."""


class Fault(NamedTuple):
    """One thing wrong with an object. `path` is the JSON path from the object's root, such as `spec.running`."""

    path: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class HyperletError(Exception):
    """Base of everything that hyperlet raises on purpose.

    `reason` is one CamelCase word, `condition` the condition type that is set on the object, `retry` whether
    the same step may succeed later without anybody changing the object.
    """

    reason: ClassVar[str] = "InternalError"
    condition: ClassVar[str] = "Synchronized"
    retry: ClassVar[bool] = True

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidObject(HyperletError):
    """The object contradicts the API. `faults` has every fault with its path."""

    reason = "InvalidObject"
    condition = "Failure"
    retry = False

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(map(str, self.faults)))


class NotFound(HyperletError):
    """The object is not there."""

    reason = "NotFound"


class Conflict(HyperletError):
    """Somebody else changed the object meanwhile, or it exists already: read it again."""

    reason = "Conflict"


class AlreadyExists(Conflict):
    """An object of that name is there already."""

    reason = "AlreadyExists"


class Expired(HyperletError):
    """The API server no longer knows that resourceVersion (410): list again."""

    reason = "Expired"


class ApiUnavailable(HyperletError):
    """The API server does not answer, or answers that it cannot (429, 5xx)."""

    reason = "ApiUnavailable"


class Forbidden(HyperletError):
    """Refused by a quota, by admission, or for want of a permission. Retried: an administrator may lift the refusal.

    `causes` are the reasons that the API server gives in one word each, if any, such as NodeCapacity.
    """

    reason = "Forbidden"
    condition = "Failure"

    def __init__(self, message: str, causes: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.causes = tuple(causes)


class LauncherUnavailable(HyperletError):
    """The launcher does not answer on its socket."""

    reason = "LauncherUnavailable"


class ImagePullFailed(HyperletError):
    """A container disk or kernel image cannot be had, or has no disk in it."""

    reason = "ImagePullFailed"


class VolumeError(HyperletError):
    """A volume is missing, unusable or not what it claims to be."""

    reason = "VolumeError"


class NetworkError(HyperletError):
    """The VM's network cannot be set up."""

    reason = "NetworkError"


class DomainError(HyperletError):
    """libvirt or QEMU refused the domain or ended it."""

    reason = "DomainError"
    retry = False
