import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.supervisor import serial_log
from launcher.supervisor.serial_log import SerialLog, TerminalFilter


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (b"login:\r\n\tok\n", b"login:\r\n\tok\n"),
        (b"\x1b[1;31mred\x1b[0m", b"\x1b[1;31mred\x1b[0m"),
        (b"\x1b[m", b"\x1b[m"),
        (b"\x1b]0;title\x07", b"^[]0;title"),
        (b"\x1b]52;c;ZXZpbA==\x07", b"^[]52;c;ZXZpbA=="),
        (b"\x1b[2J\x1b[H", b"^[[2J^[[H"),
        (b"a\x00\x05\x08\x0e\x7fb", b"ab"),
        ("ä\u009b2Jü".encode(), "ä?2Jü".encode()),
        (b"\x1b\x1b[0m", b"^[\x1b[0m"),
        (b"\x1b[" + b"1;" * 40 + b"m", b"^[[" + b"1;" * 40 + b"m"),
    ],
)
def test_only_colours_and_text_pass(given: bytes, shown: bytes) -> None:
    assert TerminalFilter().feed(given) + TerminalFilter().feed(b"") == shown


def test_split_escape_sequence_is_filtered() -> None:
    for text in (b"a\x1b[31mb", b"a\x1b]0;x", "a\u009bb".encode()):
        whole = TerminalFilter().feed(text)
        for cut in range(len(text) + 1):
            split = TerminalFilter()
            assert split.feed(text[:cut]) + split.feed(text[cut:]) == whole, cut


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b"\x1b", b"\x1b[", b"\xc2", b"\x9b", b"1;3", b"m"])))
def test_only_colours_pass_for_any_chunking(chunks: list[bytes]) -> None:
    filter_ = TerminalFilter()
    out = b"".join(map(filter_.feed, chunks)) + filter_.feed(b"z")
    for number, part in enumerate(out.split(b"\x1b")):
        if number:
            assert part[:1] == b"[" and part[1:].split(b"m")[0].translate(None, b"0123456789;") == b""
    assert not set(out) & (set(range(32)) - set(b"\r\n\t\x1b"))
    assert not any(out[at] == 0xC2 and 0x80 <= out[at + 1] < 0xA0 for at in range(len(out) - 1))


@pytest.fixture
def fifo(tmp_path: pathlib.Path) -> pathlib.Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_blocked_reader_loses_output_without_stalling_the_guest(fifo: pathlib.Path) -> None:
    reading, writing = os.pipe()
    copy = SerialLog(str(fifo), writing)
    guest = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    sent = 0
    for second in range(40):
        # A write that blocks would raise here.
        sent += os.write(guest, b"x" * 60_000 + b"\n")
        copy.pump(float(second))
    assert copy.blocked
    os.set_blocking(reading, False)
    received = bytearray()
    for second in range(40, 400):
        copy.pump(float(second))
        try:
            received += os.read(reading, 1 << 20)
        except BlockingIOError:
            break
    assert len(received) < sent and len(received) <= serial_log.BACKLOG + (1 << 20)
    assert b"bytes of the guest's output were dropped]" in received


def test_output_rate_is_limited(fifo: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        copy = SerialLog(str(fifo), out.fileno())
        guest = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        copy.pump(0.0)
        for number in range(200):
            os.write(guest, b"y" * 60_000)
            copy.pump(number / 1000)
        assert serial_log.RATE * 0.9 < out.tell() < serial_log.RATE * 1.3
        copy.pump(60.0)
    assert (tmp_path / "out").read_bytes().endswith(b"output were dropped]\n")


def test_closed_standard_output_drops_output(fifo: pathlib.Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    copy = SerialLog(str(fifo), writing)
    guest = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    os.write(guest, b"hello")
    copy.pump(1.0)
    assert not copy.blocked
