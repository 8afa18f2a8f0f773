"""The terminal of a console session: raw mode, and restoration of the previous state on every exit.

Sources: termios(3), and the control sequences of xterm (https://invisible-island.net/xterm/ctlseqs/ctlseqs.html).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from types import FrameType

ESCAPE = b"\x1d"
"""ctrl-] exits a console (also ctrl-5, which terminals send as the same byte)."""

_LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PLAIN = b"\x1b[0m\x1b[?25h\x1b[?7h\x1b[?1l\x1b>\x1b[?1000;1002;1003;1005;1006;2004l\x1b[r"
"""Resets: no colours, visible cursor, line wrap, normal keys, no mouse or paste reports, full scroll region."""
_TO_OTHER_SCREEN = (b"\x1b[?1049h", b"\x1b[?1047h", b"\x1b[?47h")
_FROM_OTHER_SCREEN = (b"\x1b[?1049l", b"\x1b[?1047l", b"\x1b[?47l")
_LONGEST = 8


class ScreenTracker:
    """Tracks the terminal modes that a guest sets, to undo them."""

    def __init__(self) -> None:
        self._tail = b""
        self.other = False
        """The guest has switched to the alternate screen."""

    def saw(self, data: bytes) -> None:
        """Scans output for control sequences."""
        text = self._tail + data
        entered = max(text.rfind(word) for word in _TO_OTHER_SCREEN)
        left = max(text.rfind(word) for word in _FROM_OTHER_SCREEN)
        if entered != left:
            self.other = entered > left
        self._tail = text[-(_LONGEST - 1) :]

    def undo(self) -> bytes:
        """Control sequences that reset the terminal without moving the cursor."""
        return (b"\x1b[?1049l" if self.other else b"") + b"\x1b7" + _PLAIN + b"\x1b8"


class Terminal:
    """Standard input and output, a terminal or pipes."""

    def __init__(self, stdin: int = 0, stdout: int = 1) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.screen = ScreenTracker()
        self._before: list[object] | None = None

    @property
    def interactive(self) -> bool:
        """Whether standard input is a terminal."""
        return os.isatty(self.stdin)

    def enter(self) -> None:
        """Sets raw mode."""
        if self.interactive:
            self._before = self._before or termios.tcgetattr(self.stdin)
            tty.setraw(self.stdin, termios.TCSANOW)

    def restore(self) -> None:
        """Restores the state before `enter`. Idempotent."""
        before, self._before = self._before, None
        if before is None:
            return
        # After SIGHUP there is no terminal to restore.
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(self.stdin, termios.TCSANOW, before)  # type: ignore[arg-type]
        if os.isatty(self.stdout):
            with contextlib.suppress(OSError):
                os.write(self.stdout, self.screen.undo())

    def write(self, data: bytes) -> None:
        """Writes all bytes; blocks while the terminal is full, which throttles the guest."""
        self.screen.saw(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self.stdout, view) :]

    def say(self, words: str) -> None:
        """Prints a message on standard error, with CR LF in raw mode."""
        end = "\r\n" if self._before is not None else "\n"
        sys.stderr.write(words.replace("\n", end) + end)
        sys.stderr.flush()


@contextlib.contextmanager
def raw(terminal: Terminal, leave: Callable[[int], None]) -> Iterator[None]:
    """Raw mode until exit. A signal restores the terminal and calls `leave` with its number.

    A second signal terminates the program immediately. SIGTSTP stops it as a shell expects.
    """
    caught: list[int] = []

    def on_leaving(number: int, _frame: FrameType | None) -> None:
        terminal.restore()
        if caught:
            os._exit(128 + number)
        caught.append(number)
        leave(number)

    def on_stop(_number: int, _frame: FrameType | None) -> None:
        terminal.restore()
        os.kill(os.getpid(), signal.SIGSTOP)
        if not caught:
            terminal.enter()

    former = {number: signal.signal(number, on_leaving) for number in _LEAVING}
    former[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, on_stop)
    try:
        terminal.enter()
        yield
    finally:
        terminal.restore()
        for number, handler in former.items():
            signal.signal(number, handler)


async def typed(descriptor: int, size: int = 4096) -> AsyncIterator[bytes]:
    """Yields data from a file descriptor until EOF.

    Reads in a thread: this works for terminals, pipes and files, and keeps the descriptor, which is shared with the
    shell, in blocking mode.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[bytes] = asyncio.Queue()
    taken = threading.Semaphore(0)

    def read() -> None:
        data = b"-"
        while data:
            try:
                data = os.read(descriptor, size)
            except OSError:
                data = b""
            try:
                loop.call_soon_threadsafe(arrived.put_nowait, data)
            except RuntimeError:
                return  # the event loop is closed
            taken.acquire()

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while data := await arrived.get():
        yield data
        taken.release()
