"""Console output: one aligned line per step with its time, and failures with a remedy.

Steps may run in parallel. On a terminal the running steps are shown and updated below the finished ones; elsewhere a
line is printed periodically with their progress.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

LABEL_WIDTH = 46
LOG_TAIL_LINES = 12
REDRAW_SECONDS = 0.2
"""On a terminal: the pause between two updates of a step's progress."""

REPEAT_SECONDS = 20.0
"""Elsewhere: the pause between two lines about one step."""


class ClusterError(Exception):
    """A step that failed, with a message for the user.

    what: what failed.  log: the file with details.  remedy: what to run or change next.
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


@dataclass(eq=False)
class ProgressStep:
    """One running step; `note` is printed beside the label when it is done."""

    label: str
    note: str = ""
    console: ProgressConsole | None = None
    begun: float = field(default_factory=time.monotonic)
    far: str = ""
    said: float = field(default_factory=time.monotonic)

    def progress(self, far: str) -> None:
        """Set the step's progress: `812 of 2113 packages`."""
        self.far = far
        if self.console is not None:
            self.console.moved(self)


@dataclass
class ProgressConsole:
    """Prints steps as they end. Steps may run in several threads; lines are not interleaved."""

    quiet: bool = False
    started: float = field(default_factory=time.monotonic)
    stream: TextIO | None = None
    """Where lines go; standard output by default."""

    _lock: threading.RLock = field(default_factory=threading.RLock)
    _moving: list[ProgressStep] = field(default_factory=list)
    _drawn: int = 0
    _last: float = 0.0

    @property
    def _out(self) -> TextIO:
        return self.stream or sys.stdout

    def say(self, text: str) -> None:
        """A line of its own, without a time."""
        if not self.quiet:
            with self._lock:
                self._erase()
                print(text, file=self._out, flush=True)
                self._draw()

    @contextmanager
    def step(self, label: str) -> Iterator[ProgressStep]:
        """Time the body and print `label`, its note and the seconds it took."""
        step = ProgressStep(label, console=self)
        try:
            yield step
        except BaseException:
            self._end("✗", step)
            raise
        self._end("✓", step)

    def moved(self, step: ProgressStep) -> None:
        """Show a step's progress."""
        if self.quiet:
            return
        now = time.monotonic()
        with self._lock:
            if step not in self._moving:
                self._moving.append(step)
            if self._out.isatty():
                if now - self._last >= REDRAW_SECONDS:
                    self._erase()
                    self._draw()
            elif now - step.said >= REPEAT_SECONDS:
                step.said = now
                print(f"  … {self._text(step, step.far):<{LABEL_WIDTH + 22}} {now - step.begun:7.0f} s",
                      file=self._out, flush=True)  # fmt: skip

    def _end(self, mark: str, step: ProgressStep) -> None:
        with self._lock:
            if step in self._moving:
                self._erase()
                self._moving.remove(step)
            self.say(
                f"  {mark} {self._text(step, step.note):<{LABEL_WIDTH + 22}} {time.monotonic() - step.begun:7.2f} s"
            )

    @staticmethod
    def _text(step: ProgressStep, note: str) -> str:
        return f"{step.label}  {note}" if note else step.label

    def _erase(self) -> None:
        if self._drawn:
            # Go up to the first running step's line and clear to the end of the screen (ECMA-48 CPL, ED).
            self._out.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        if not self._moving or not self._out.isatty():
            return
        now = time.monotonic()
        for step in self._moving:
            print(
                f"  … {self._text(step, step.far):<{LABEL_WIDTH + 22}} {now - step.begun:7.0f} s"[:78], file=self._out
            )
        self._out.flush()
        self._drawn, self._last = len(self._moving), now

    def summary(self, text: str) -> None:
        """The closing line, with the time since the command began."""
        self.say(f"{text}  ({time.monotonic() - self.started:.1f} s)")


def report_error(problem: ClusterError) -> None:
    """Print a failure to standard error."""
    print(problem.explain(), file=sys.stderr, flush=True)
