import os
import pathlib
import signal
import time

import pytest

from kit import child


@pytest.fixture
def program(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "program"
    path.touch(0o755)
    return path


def run(program: pathlib.Path, script: str, stdin: bytes = b"", seconds: float = 30.0) -> child.ChildResult:
    program.write_text(f"#!/bin/sh\n{script}\n")
    return child.run(str(program), {"PATH": child.PATH, "GREETING": "hello"}, stdin, seconds)


def test_output_and_exit_code(program: pathlib.Path) -> None:
    result = run(program, 'echo "$GREETING $(pwd)"; cat; echo oops >&2; exit 3', b"input")
    assert result == child.ChildResult(3, b"hello /\ninput", b"oops\n")


def test_large_input_that_is_not_read_does_not_block(program: pathlib.Path) -> None:
    assert run(program, "exit 0", b"x" * (1 << 20)).code == 0


def test_program_that_does_not_exit_is_killed_with_its_children(program: pathlib.Path) -> None:
    result = run(program, "sleep 1000 & echo $!; wait", seconds=0.5)
    assert (result.code, result.trouble) == (-signal.SIGKILL, "did not exit within 0.5 s and was killed")
    pid = int(result.stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and is_running(pid):
        time.sleep(0.02)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_program_that_closes_its_output_and_stays_is_killed(program: pathlib.Path) -> None:
    result = run(program, "exec >&- 2>&-; exec sleep 1000", seconds=0.5)
    assert (result.code, result.trouble) == (-signal.SIGKILL, "did not exit within 0.5 s and was killed")


@pytest.mark.parametrize("where", ["", " >&2"])
def test_program_that_floods_is_killed(program: pathlib.Path, where: str) -> None:
    result = run(program, f"yes{where}")
    assert (result.code, result.trouble) == (-signal.SIGKILL, "printed more than 1 MiB and was killed")


def test_missing_program_raises(tmp_path: pathlib.Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(FileNotFoundError):
        child.run(str(tmp_path / "none"), {}, b"", 1.0)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
