"""The console on a real terminal: raw keys, ctrl-], and restoration of the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from cli.terminal import ScreenTracker
from tests.unit.cli.conftest import Hyperctl
from tests.unit.cli.published import OBJ, SUB, Published, Stream, echo, status
from tests.unit.cli.window import PATIENCE, ROOT, Window
from tests.waiting import wait_for

CONSOLE = f"{SUB}/virtualmachineinstances/testvm/console"
VMI = f"{OBJ}/virtualmachineinstances/testvm"
VM = f"{OBJ}/virtualmachines/testvm"
CTRL_C, CTRL_D, CTRL_Z, CTRL_RIGHT = "\x03", "\x04", "\x1a", "\x1d"


async def guest(socket: web.WebSocketResponse) -> None:
    """A guest that greets and echoes."""
    await socket.send_bytes(b"login: ")
    await echo(socket)


def ending(code: int, reason: bytes) -> Stream:
    """A guest that greets and then closes the console with the given code."""

    async def stream(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"login: ")
        await socket.receive()
        await socket.close(code=code, message=reason)

    return stream


@pytest.fixture
def window(server: Published, tmp_path: Path) -> Callable[..., Window]:
    server.streams.setdefault(CONSOLE, guest)
    config = server.kubeconfig(tmp_path)
    return lambda *words: Window("console", "testvm", *words, kubeconfig=config)


def test_keys_are_sent_raw_and_ctrl_right_bracket_exits(server: Published, window: Callable[..., Window]) -> None:
    with window() as shell:
        shell.until("Successfully connected to testvm console. Press Ctrl+] or Ctrl+5 to exit console.")
        shell.until("login: ")
        assert shell.raw
        shell.type(f"root\r{CTRL_C}{CTRL_D}{CTRL_Z}é!")
        shell.until(f"root\r{CTRL_C}{CTRL_D}{CTRL_Z}é!")
        shell.type(CTRL_RIGHT)
        assert shell.ended() == 0
        assert shell.settings() == shell.before
    wait_for(lambda: server.open_streams == 0, seconds=20)


def test_input_before_ctrl_right_bracket_is_sent(server: Published, window: Callable[..., Window]) -> None:
    heard: list[bytes] = []

    async def listening(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"login: ")
        async for message in socket:
            heard.append(message.data)

    server.streams[CONSOLE] = listening
    with window() as shell:
        shell.until("login: ")
        shell.type(f"last words{CTRL_RIGHT}not these")
        assert shell.ended() == 0
    wait_for(lambda: server.open_streams == 0, seconds=20)
    assert b"".join(heard) == b"last words"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signal_restores_terminal(window: Callable[..., Window], number: signal.Signals) -> None:
    with window() as shell:
        shell.until("login: ")
        assert shell.raw
        shell.signal(number)
        assert shell.ended() == 128 + number
        assert shell.settings() == shell.before
        assert b"Traceback" not in shell.shown


def test_sigtstp_restores_terminal_and_sigcont_resumes_raw_mode(window: Callable[..., Window]) -> None:
    with window() as shell:
        shell.until("login: ")
        shell.signal(signal.SIGTSTP)
        wait_for(lambda: shell.settings() == shell.before, seconds=20)
        wait_for(
            lambda: Path(f"/proc/{shell.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T",
            "the command is stopped",
            seconds=20,
        )
        shell.signal(signal.SIGCONT)
        wait_for(lambda: shell.raw, seconds=20)
        shell.type("still here")
        shell.until("still here")
        shell.type(CTRL_RIGHT)
        assert shell.ended() == 0
        assert shell.settings() == shell.before


@pytest.mark.parametrize(
    ("code", "reason", "exit_code", "words"),
    [
        (1000, b"the guest closed the stream", 0, "The console of testvm was closed: the guest closed the stream"),
        (1000, b"", 0, "The console of testvm was closed."),
        (
            1001,
            b"the gateway is shutting down",
            1,
            "disconnected from the console of testvm: the gateway is shutting down",
        ),
        (1011, b"", 1, "another client took over the console"),
    ],
)
def test_server_close_ends_console(
    server: Published, window: Callable[..., Window], code: int, reason: bytes, exit_code: int, words: str
) -> None:
    server.streams[CONSOLE] = ending(code, reason)
    with window() as shell:
        shell.until("login: ")
        shell.type("x")
        assert shell.ended() == exit_code
        shell.until(words)
        assert shell.settings() == shell.before


def test_lost_connection_ends_console_with_error(server: Published, window: Callable[..., Window]) -> None:
    async def breaks(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"login: ")
        await socket.receive()
        assert socket._req is not None and socket._req.transport is not None
        socket._req.transport.abort()

    server.streams[CONSOLE] = breaks
    with window() as shell:
        shell.until("login: ")
        shell.type("x")
        assert shell.ended() == 1
        shell.until("or the network failed")
        assert shell.settings() == shell.before


def test_unexpected_error_restores_terminal(server: Published, tmp_path: Path) -> None:
    server.streams[CONSOLE] = guest
    sabotage = tmp_path / "sitecustomize.py"
    sabotage.write_text(
        "import cli.terminal\n"
        "def write(self, data): raise RuntimeError('out of paper')\n"
        "cli.terminal.Terminal.write = write\n"
    )
    config = server.kubeconfig(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
        with Window("console", "testvm", kubeconfig=config) as shell:
            assert shell.ended() == 1
            shell.until("RuntimeError: out of paper")
            assert shell.settings() == shell.before


def test_large_output_is_complete(server: Published, window: Callable[..., Window]) -> None:
    lines = "".join(f"line {number} {'x' * 60}\r\n" for number in range(20000)).encode()

    async def floods(socket: web.WebSocketResponse) -> None:
        for at in range(0, len(lines), 65536):
            await socket.send_bytes(lines[at : at + 65536])
        await socket.send_bytes(b"THE END")
        await socket.receive()

    server.streams[CONSOLE] = floods
    with window() as shell:
        shell.until("exit console.")
        shell.until("THE END")
        shell.type(CTRL_RIGHT)
        assert shell.ended() == 0
        assert lines in shell.shown


def test_console_waits_for_starting_vm(server: Published, window: Callable[..., Window]) -> None:
    running = status(400, "BadRequest", "VMI is not running")
    server.answers["GET", CONSOLE] = [status(404, "NotFound", "no such vmi", "testvm"), running, None]
    server.answers["GET", VM] = {"status": {"printableStatus": "Starting"}}
    server.answers["GET", VMI] = {"status": {"phase": "Scheduled"}}
    with window() as shell:
        shell.until("waiting for its console")
        shell.until("login: ")
        shell.type(CTRL_RIGHT)
        assert shell.ended() == 0


def test_console_does_not_wait_for_vm_without_console(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["GET", CONSOLE] = status(400, "BadRequest", "No serial consoles are present.")
    server.answers["GET", VMI] = {"status": {"phase": "Running"}}
    words = "cannot open the console of VirtualMachineInstance testvm: No serial consoles are present."
    assert hyperctl("console", "testvm") == (1, "", f"error: {words}\n")
    server.answers["GET", CONSOLE] = status(403, "Forbidden", "not allowed")
    assert "not allowed" in hyperctl("console", "testvm").err
    server.answers["GET", CONSOLE] = status(404, "NotFound", "no such vmi", "testvm")
    server.answers["GET", VM] = {"status": {"printableStatus": "Stopped"}}
    assert "no such vmi" in hyperctl("console", "testvm").err


def test_console_wait_times_out(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["GET", CONSOLE] = status(400, "BadRequest", "VMI is not running")
    server.answers["GET", VMI] = {"status": {"phase": "Scheduling"}}
    assert "VMI is not running" in hyperctl("console", "testvm", "--timeout=0.001").err


def test_shared_flag_is_sent(server: Published, window: Callable[..., Window]) -> None:
    with window("--shared") as shell:
        shell.until("login: ")
        shell.type(CTRL_RIGHT)
        assert shell.ended() == 0
    assert [request.query for request in server.requests if request.path == CONSOLE] == [{"shared": "true"}]


def test_a_console_works_on_pipes(server: Published, tmp_path: Path) -> None:
    server.streams[CONSOLE] = guest
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "console", "testvm", f"--kubeconfig={server.kubeconfig(tmp_path)}"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdin and process.stdout
        assert process.stdout.read(7) == b"login: "
        process.stdin.write(b"hello")
        process.stdin.flush()
        assert process.stdout.read(5) == b"hello"
        process.stdin.write(CTRL_RIGHT.encode())
        process.stdin.flush()
        assert process.wait(PATIENCE) == 0


# ---- terminal modes left by guests


def test_alternate_screen_is_reset() -> None:
    screen = ScreenTracker()
    screen.saw(b"\x1b[?10")
    screen.saw(b"49hvim")
    assert screen.other and screen.undo().startswith(b"\x1b[?1049l")
    screen.saw(b"\x1b[?1049l$ ")
    assert not screen.other and b"1049" not in screen.undo()
    assert b"\x1b[?25h" in screen.undo() and b"\x1b[0m" in screen.undo()
