"""Child processes of the supervisor: in their own sessions, restarted with growing delays."""

import os
import signal
import time

LARGEST_OUTPUT = 1 << 20
_PAUSES = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_STABLE_SECONDS = 10.0


class ChildProcess:
    """A helper process that must always run. Times are monotonic seconds."""

    def __init__(self, name: str, argv: list[str], env: dict[str, str], output: str = "") -> None:
        self.name = name
        self.output = output
        """File for its standard output and error; empty: the supervisor's standard error, which goes to `kubectl logs`
        (the supervisor's standard output is the guest's console)."""
        self.argv = argv
        self.env = env
        self.pid = 0
        self.status: int | None = None
        """Last exit status, as from waitpid."""
        self.start_at = 0.0
        """Time of the next start, while it is not running."""
        self._started = 0.0
        self._failures = 0

    def start(self) -> None:
        """Start it in its own session, which signals to our process group do not reach. Standard input is empty."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        output = (os.POSIX_SPAWN_OPEN, 1, self.output, flags, 0o600) if self.output else (os.POSIX_SPAWN_DUP2, 2, 1)
        self.pid = os.posix_spawn(
            self.argv[0],
            self.argv,
            self.env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                output,
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE],
        )
        self._started = time.monotonic()
        self.status = None

    def ended(self, status: int, now: float) -> float:
        """Record its exit. Returns the delay before the next start in seconds."""
        self.pid = 0
        self.status = status
        if now - self._started > _STABLE_SECONDS:
            self._failures = 0
        pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        self.start_at = now + pause
        return pause

    def last_words(self) -> str:
        """The end of its output, if that goes to a file."""
        try:
            with open(self.output, "rb") as file:  # noqa: PTH123
                file.seek(max(0, file.seek(0, os.SEEK_END) - 400))
                return file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def trim(self) -> None:
        """Truncate its output file if it has grown."""
        if self.output:
            trim(self.output)

    def kill(self, number: int) -> None:
        """Send a signal if it is running."""
        if self.pid:
            kill(self.pid, number)


def kill(pid: int, number: int) -> None:
    """Send a signal; errors for exited or foreign processes are ignored."""
    try:  # noqa: SIM105
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def trim(path: str) -> None:
    """Truncate an append-only log larger than LARGEST_OUTPUT bytes."""
    try:
        if os.stat(path).st_size > LARGEST_OUTPUT:  # noqa: PTH116
            os.truncate(path, 0)
    except FileNotFoundError:
        pass


def describe(status: int) -> str:
    """A waitpid status as text: `exit status 1`, `signal 9 (SIGKILL)`."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"signal {number} ({signal.Signals(number).name})"
        except ValueError:
            return f"signal {number}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"
