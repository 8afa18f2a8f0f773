"""Errors of operations that do not fit the VM's state."""


class OperationRefused(Exception):
    """The operation is not possible in the current state. `code` is a gRPC status name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
