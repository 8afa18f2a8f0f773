"""What a person sees: one aligned line per step with its time, and a failure that says what to do next."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LABEL_WIDTH = 46
LOG_TAIL_LINES = 12


class Problem(Exception):
    """A step that failed, in words for the person who typed the command.

    what: what did not work.  log: the file that tells more.  remedy: what to type or change next.
    """

    def __init__(self, what: str, *, log: Path | None = None, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.log = log
        self.remedy = remedy

    def explain(self) -> str:
        """The whole message: what failed, the end of its log, what to do."""
        lines = [f"failed: {self.what}"]
        if self.log is not None:
            lines += [f"   log: {self.log}", *(f"        | {line}" for line in tail(self.log, LOG_TAIL_LINES))]
        if self.remedy:
            lines.append(f"  next: {self.remedy}")
        return "\n".join(lines)


def tail(path: Path, count: int) -> list[str]:
    """The last `count` lines of a text file; nothing if it cannot be read."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - 65536))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[-count:]


@dataclass
class Step:
    """One running step; `note` is what its line says beside the label once it is done."""

    label: str
    note: str = ""


@dataclass
class Console:
    """Prints steps as they end. Steps may run in several threads; a line is written whole."""

    quiet: bool = False
    started: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, text: str) -> None:
        """A line of its own, without a time."""
        if not self.quiet:
            with self._lock:
                print(text, flush=True)

    @contextmanager
    def step(self, label: str) -> Iterator[Step]:
        """Time the body and print `label`, its note and the seconds it took."""
        step = Step(label)
        begun = time.monotonic()
        try:
            yield step
        except BaseException:
            self._line("✗", step, time.monotonic() - begun)
            raise
        self._line("✓", step, time.monotonic() - begun)

    def _line(self, mark: str, step: Step, seconds: float) -> None:
        text = f"{step.label}  {step.note}" if step.note else step.label
        self.say(f"  {mark} {text:<{LABEL_WIDTH + 22}} {seconds:7.2f} s")

    def summary(self, text: str) -> None:
        """The closing line, with the time since the command began."""
        self.say(f"{text}  ({time.monotonic() - self.started:.1f} s)")


def complain(problem: Problem) -> None:
    """Print a failure to standard error."""
    print(problem.explain(), file=sys.stderr, flush=True)
