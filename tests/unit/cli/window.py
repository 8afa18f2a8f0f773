"""hyperctl on a pty: output, input, and terminal settings."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 20.0


class Window:
    """`with Window("console", "vm", kubeconfig=…) as window:`"""

    def __init__(self, *words: str, kubeconfig: Path) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.shown = b""
        self._seen = 0

        def controlling() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli", *words],
            cwd=ROOT,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "KUBECONFIG": str(kubeconfig), "TERM": "xterm"},
            preexec_fn=controlling,
        )

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def until(self, text: str) -> str:
        """Waits for a text in new output; returns the output before it."""
        deadline = time.monotonic() + PATIENCE
        while (at := self.shown.find(text.encode(), self._seen)) < 0:
            assert self._more(deadline), f"never shown: {text!r} in {self.shown!r}"
        before = self.shown[self._seen : at]
        self._seen = at + len(text)
        return before.decode(errors="replace")

    def type(self, text: str) -> None:
        """Sends keys."""
        os.write(self.master, text.encode())

    def settings(self) -> list[Any]:
        """The termios settings."""
        return termios.tcgetattr(self.slave)

    @property
    def raw(self) -> bool:
        """Whether the terminal is in raw mode."""
        return not self.settings()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the program."""
        self.process.send_signal(number)

    def ended(self) -> int:
        """Waits for the exit code, and reads the remaining output."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            self._more(min(deadline, time.monotonic() + 0.05))
            assert time.monotonic() < deadline, f"does not end; it has shown {self.shown!r}"
        while self._more(time.monotonic() + 0.05):
            pass
        return int(self.process.returncode)

    def _more(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.shown += data
        return bool(data)
