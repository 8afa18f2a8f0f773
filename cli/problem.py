"""The error class of the command line."""


class CliError(Exception):
    """An error message for the user, and the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
