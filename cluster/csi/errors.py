"""The driver's errors, with the gRPC status from the CSI specification."""

from __future__ import annotations


class StorageError(Exception):
    """A call that is refused. `code` is the name of a gRPC status: NOT_FOUND, INVALID_ARGUMENT, ..."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def required(value: object, name: str) -> None:
    """Raises StorageError for a field of a request that is empty."""
    if not value:
        raise StorageError("INVALID_ARGUMENT", f"{name} is missing")
