"""What a person sees of steps that run side by side."""

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
    """What stands on a terminal after it has been sent `text` (of its control sequences we use two)."""
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


def test_on_a_terminal_steps_under_way_stand_below_the_finished_ones(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_elsewhere_a_line_now_and_then_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
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
