"""The one error of the command line."""


class CliError(Exception):
    """A sentence for the person at the keyboard, and the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
