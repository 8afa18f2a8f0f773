"""Console output of parallel steps."""

from __future__ import annotations

import io
import re

import pytest

from cluster import console
from cluster.console import ProgressConsole


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str) -> list[str]:
    """The lines on a terminal after printing `text` (with the two control sequences that are used)."""
    lines: list[str] = [""]
    for part in re.split(r"(\x1b\[\d+F\x1b\[J|\n)", text):
        up = re.fullmatch(r"\x1b\[(\d+)F\x1b\[J", part)
        if up:
            del lines[len(lines) - 1 - int(up.group(1)) :]
            lines.append("")
        elif part == "\n":
            lines.append("")
        else:
            lines[-1] += part
    return [line for line in lines if line]


def test_terminal_shows_running_steps_below_finished_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "REDRAW_SECONDS", 0)
    terminal = Terminal()
    out = ProgressConsole(stream=terminal)
    with out.step("compile") as first:
        first.progress("1 of 9 packages")
        with out.step("images") as second:
            second.progress("base")
            assert [line.split()[0:2] for line in screen(terminal.getvalue())] == [["…", "compile"], ["…", "images"]]
        first.progress("8 of 9 packages")
        shown = screen(terminal.getvalue())
        assert "✓ images" in shown[0]
        assert "8 of 9 packages" in shown[1] and len(shown) == 2
    shown = screen(terminal.getvalue())
    assert ["✓ images" in shown[0], "✓ compile" in shown[1], len(shown)] == [True, True, 2]


def test_pipe_gets_periodic_progress_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "REPEAT_SECONDS", 1000)
    log = io.StringIO()
    out = ProgressConsole(stream=log)
    with out.step("compile") as step:
        step.progress("1 of 9 packages")
        assert log.getvalue() == ""
        step.said -= 2000
        step.progress("2 of 9 packages")
        step.progress("3 of 9 packages")
        assert "2 of 9 packages" in log.getvalue() and "3 of 9" not in log.getvalue()
    assert "\x1b" not in log.getvalue()
