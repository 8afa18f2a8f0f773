"""What is said to a caller whose call does not fit the state."""


class OperationRefused(Exception):
    """What was asked does not fit the state. `code` is a gRPC status name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
