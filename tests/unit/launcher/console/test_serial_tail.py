"""The tail of the serial output."""

import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.console import serial_tail
from launcher.console.serial_tail import LARGEST, SerialTail, before, screenful
from launcher.supervisor.serial_log import SerialLog


def test_saved_output_is_read_back(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "tail")
    kept = SerialTail(path)
    assert serial_tail.read(path) == (0, b"")
    kept.feed(b"one\n")
    kept.feed(b"\x1b[1mtwo")
    assert serial_tail.read(path) == (0, b"")
    kept.save()
    assert serial_tail.read(path) == (11, b"one\n\x1b[1mtwo")


def test_only_the_last_bytes_are_kept(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "tail")
    kept = SerialTail(path)
    for _ in range(5):
        kept.feed(b"x" * 3000)
        kept.feed(b"y" * (LARGEST + 1))
        kept.save()
    kept.feed(b"end")
    kept.save()
    total, last = serial_tail.read(path)
    assert (total, len(last)) == (5 * (3001 + LARGEST) + 3, LARGEST)
    assert last.endswith(b"yyend")
    assert (tmp_path / "tail").stat().st_size == LARGEST + 16


def test_missing_or_damaged_file_is_empty(tmp_path: pathlib.Path) -> None:
    assert serial_tail.read(str(tmp_path / "none")) == (0, b"")
    (tmp_path / "short").write_bytes(b"abc")
    serial_tail.read(str(tmp_path / "short"))
    (tmp_path / "long").write_bytes(b"x" * 100_000)
    assert len(serial_tail.read(str(tmp_path / "long"))[1]) <= LARGEST + 16


def test_the_supervisor_keeps_the_raw_bytes(tmp_path: pathlib.Path) -> None:
    fifo, path = tmp_path / "fifo", str(tmp_path / "tail")
    os.mkfifo(fifo)
    reading, writing = os.pipe()
    try:
        console = SerialLog(str(fifo), writing, SerialTail(path))
        os.write(console.source, b"\x1b[2Jhello\x07\r\n")
        console.pump(10.0)
        assert serial_tail.read(path) == (12, b"\x1b[2Jhello\x07\r\n")
        assert os.read(reading, 100) == b"^[[2Jhello\r\n"
        os.close(console.source)
    finally:
        os.close(reading)
        os.close(writing)


def test_screenful_has_24_lines() -> None:
    lines = b"".join(b"line %d\r\n" % number for number in range(100))
    assert screenful(lines + b"login: ").split(b"\r\n") == [
        *(b"line %d" % number for number in range(77, 100)),
        b"login: ",
    ]
    assert screenful(b"one\ntwo") == b"one\ntwo"
    assert screenful(b"") == b""


def test_truncated_screenful_starts_with_a_line() -> None:
    cut = b"\xbf cut\n" + b"z" * (LARGEST - 6)
    assert screenful(cut) == cut[6:]
    assert screenful(b"z" * LARGEST) == b"z" * LARGEST


@pytest.mark.parametrize(
    ("last", "fresh", "largest", "expected"),
    [
        (b"login: ", b"", 100, b"login: "),
        (b"login: ab", b"abc", 2, b"login: "),
        (b"login: \n", b"\n", 0, b"login: \n"),
        (b"abab", b"ab", 2, b"ab"),
        (b"ab", b"abab", 99, b""),
        (b"abc", b"xyz", 99, b"abc"),
    ],
)
def test_overlap_is_removed(last: bytes, fresh: bytes, largest: int, expected: bytes) -> None:
    assert before(last, fresh, largest) == expected


@given(st.binary(max_size=60), st.binary(max_size=60), st.data())
def test_overlap_is_removed_once(old: bytes, new: bytes, data: st.DataObject) -> None:
    """The log ends at some moment, the socket's data starts at an earlier one."""
    seen = data.draw(st.integers(0, len(new)))
    replay = before(old + new[:seen], new, seen)
    assert (old + new).endswith(new) and (old + new).startswith(replay)
    assert len(replay) <= len(old) + seen
