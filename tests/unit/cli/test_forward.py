"""Port-forward and VNC: a WebSocket for every local connection; tcp, udp and stdio."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from cli import viewers
from cli.problem import CliError
from cli.targets import Forward, Login, Target, forward_of, login_of, target_of
from tests.unit.cli.conftest import Hyperctl
from tests.unit.cli.published import SUB, Published, echo, status
from tests.unit.cli.window import PATIENCE, ROOT

VMI = f"{SUB}/virtualmachineinstances/testvm"
VNC = f"{VMI}/vnc"
GREETING = b"RFB 003.008\n"


@contextlib.contextmanager
def running(config: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """hyperctl in the background, ended with ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *words, f"--kubeconfig={config}"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.communicate()


def line_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout
    return process.stdout.readline().decode()


def dialled(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.settimeout(PATIENCE)
    made.connect(("127.0.0.1", port))
    return made


def exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        assert piece, f"ended after {data!r}"
        data += piece
    return data


def port_of(line: str) -> int:
    return int(line.partition(" ->")[0].rpartition(":")[2])


def test_each_tcp_connection_has_its_own_stream(server: Published, tmp_path: Path) -> None:
    server.streams[f"{VMI}/portforward/80/tcp"] = echo
    with running(server.kubeconfig(tmp_path), "port-forward", "vmi/testvm", "0:80") as process:
        line = line_of(process)
        assert line.startswith("Forwarding from 127.0.0.1:") and line.endswith(" -> 80 (tcp)\n")
        with dialled(port_of(line)) as one, dialled(port_of(line)) as two:
            one.sendall(b"one")
            two.sendall(b"two")
            assert (exactly(one, 3), exactly(two, 3)) == (b"one", b"two")
            big = os.urandom(1 << 20)
            one.sendall(big)
            assert exactly(one, len(big)) == big
            assert server.open_streams == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_response_after_client_half_close_is_received(server: Published, tmp_path: Path) -> None:
    async def answers_late(stream: web.WebSocketResponse) -> None:
        message = await stream.receive()
        await stream.send_bytes(message.data + b" heard")

    server.streams[f"{VMI}/portforward/80/tcp"] = answers_late
    config = server.kubeconfig(tmp_path)
    with (
        running(config, "port-forward", "vmi/testvm", "0:80") as process,
        dialled(port_of(line_of(process))) as caller,
    ):
        caller.sendall(b"question")
        caller.shutdown(socket.SHUT_WR)
        assert exactly(caller, 14) == b"question heard"
        assert caller.recv(1) == b""


def test_refused_connection_is_reported_and_listener_continues(server: Published, tmp_path: Path) -> None:
    path = f"{VMI}/portforward/80/tcp"
    server.streams[path] = echo
    server.answers["GET", path] = [status(409, "Conflict", "VMI is paused"), None]
    with running(server.kubeconfig(tmp_path), "port-forward", "vmi/testvm", "0:80") as process:
        port = port_of(line_of(process))
        with dialled(port) as refused:
            assert refused.recv(1) == b""
        assert process.stderr
        assert process.stderr.readline() == b"error: port 80 of testvm: VMI is paused\n"
        with dialled(port) as taken:
            taken.sendall(b"x")
            assert exactly(taken, 1) == b"x"


def test_datagram_boundaries_are_preserved(server: Published, tmp_path: Path) -> None:
    server.streams[f"{SUB}/virtualmachines/testvm/portforward/53/udp"] = echo
    with running(server.kubeconfig(tmp_path), "port-forward", "vm/testvm", "udp/0:53") as process:
        port = port_of(line_of(process))
        with dialled(port, socket.SOCK_DGRAM) as one, dialled(port, socket.SOCK_DGRAM) as two:
            one.send(b"first")
            assert one.recv(100) == b"first"
            two.send(b"other")
            one.send(b"second")
            assert one.recv(100) == b"second"
            assert two.recv(100) == b"other"


def test_a_port_on_standard_input_and_output(server: Published, tmp_path: Path) -> None:
    server.streams[f"{VMI.replace('default', 'ns')}/portforward/22/tcp"] = echo
    with running(server.kubeconfig(tmp_path), "port-forward", "--stdio=true", "vmi/testvm/ns", "22") as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"SSH-2.0\r\n")
        process.stdin.flush()
        assert process.stdout.read(9) == b"SSH-2.0\r\n"


def test_stdio_ends_when_guest_closes(server: Published, tmp_path: Path) -> None:
    async def leaves(stream: web.WebSocketResponse) -> None:
        await stream.send_bytes(b"bye")

    server.streams[f"{VMI}/portforward/22/tcp"] = leaves
    with running(server.kubeconfig(tmp_path), "port-forward", "--stdio", "vmi/testvm", "22") as process:
        assert process.stdout and process.stdout.read() == b"bye"
        assert process.wait(PATIENCE) == 0


def test_unusable_ports_are_reported(hyperctl: Hyperctl) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ("port-forward", "vmi/testvm", f"{taken.getsockname()[1]}:80")
        assert "cannot listen on 127.0.0.1 port" in hyperctl(*words).err
    assert "--stdio accepts exactly one port" in hyperctl("port-forward", "--stdio", "vmi/testvm", "1", "2").err


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("vmi/a", Target("virtualmachineinstances", "a", None)),
        ("vm/a/ns", Target("virtualmachines", "a", "ns")),
        ("VirtualMachines/a.b/ns", Target("virtualmachines", "a.b", "ns")),
        ("vmi/a.ns", Target("virtualmachineinstances", "a", "ns")),
        ("a", Target("virtualmachineinstances", "a", None)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert target_of(text) == target


@pytest.mark.parametrize("text", ["", "/", "vm/", "vm/a/", "pod/a", "vm/a/b/c", "vm/.ns", "vm/a."])
def test_invalid_targets_are_refused(text: str) -> None:
    with pytest.raises(CliError):
        target_of(text)


def test_logins() -> None:
    assert login_of("me@vm/a") == Login("me", Target("virtualmachines", "a", None))
    assert login_of("me@corp@vm/a").user == "me@corp"
    assert login_of("a").user is None
    with pytest.raises(CliError, match="no user before '@'"):
        login_of("@a")


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("80", Forward("tcp", 80, 80)),
        ("8080:80", Forward("tcp", 8080, 80)),
        ("UDP/5353:53", Forward("udp", 5353, 53)),
        ("0:80", Forward("tcp", 0, 80)),
    ],
)
def test_ports(text: str, forward: Forward) -> None:
    assert forward_of(text) == forward


@pytest.mark.parametrize("text", ["", "x", "80:", "0", "65536", "sctp/80", "80:0", "1:2:3", "-1", "٣"])
def test_invalid_ports_are_refused(text: str) -> None:
    with pytest.raises(CliError):
        forward_of(text)


# ---- VNC


async def screen(stream: web.WebSocketResponse) -> None:
    """The greeting of a VNC server, then an echo."""
    await stream.send_bytes(GREETING)
    await echo(stream)


def test_vnc_proxy_serves_several_viewers(server: Published, tmp_path: Path) -> None:
    server.streams[VNC] = screen
    with running(server.kubeconfig(tmp_path), "vnc", "testvm", "--proxy-only") as process:
        port = json.loads(line_of(process))["port"]
        with dialled(port) as one, dialled(port) as two:
            assert exactly(one, 12) == exactly(two, 12) == GREETING
            one.sendall(b"!")
            assert exactly(one, 1) == b"!"
        with dialled(port) as three:
            assert exactly(three, 12) == GREETING
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_command_ends_when_viewer_exits(server: Published, hyperctl: Hyperctl, tmp_path: Path) -> None:
    server.streams[VNC] = screen
    viewer = tmp_path / "vncviewer"
    script = (
        f"#!{sys.executable}\n"
        "import socket, sys\n"
        "host, port = sys.argv[1].split('::')\n"
        "connection = socket.create_connection((host, int(port)), 10)\n"
        f"open({str(tmp_path / 'seen')!r}, 'wb').write(connection.recv(12))\n"
    )
    viewer.write_text(script)
    viewer.chmod(0o755)
    result = hyperctl("vnc", "testvm", "--vnc-type=tiger", f"--vnc-path={viewer}")
    assert result == (0, "", "")
    assert (tmp_path / "seen").read_bytes() == GREETING
    viewer.write_text("#!/bin/sh\necho no display; exit 7\n")
    result = hyperctl("vnc", "testvm", "--vnc-type=tiger", f"--vnc-path={viewer}")
    assert result.err.endswith("failed with exit code 7: no display\n")


def test_no_viewer_is_started_when_vnc_is_refused(server: Published, hyperctl: Hyperctl) -> None:
    server.answers["GET", VNC] = status(403, "Forbidden", "you may not")
    result = hyperctl("vnc", "testvm", "--vnc-type=tiger", "--vnc-path=/bin/true")
    assert result.err == "error: cannot open VNC of VirtualMachineInstance testvm: you may not\n"
    assert "must be set together" in hyperctl("vnc", "testvm", "--vnc-type=tiger").err


def test_viewer_discovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CliError, match=r"remote-viewer, .*--proxy-only"):
        viewers.found(5999, "linux")
    for name in ("vncviewer", "remote-viewer"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        found = viewers.found(5999, "linux")
        assert Path(found.path).name == name
    assert found.arguments == ("vnc://127.0.0.1:5999",)
    for version in ("1.0", "1.9"):
        app = tmp_path / f"TigerVNC Viewer {version}.app/Contents/MacOS"
        app.mkdir(parents=True)
        (app / "TigerVNC Viewer").touch()
    mac = viewers.found(5999, "darwin", tmp_path)
    assert "1.9" in mac.path and mac.arguments == ("127.0.0.1::5999",)
    with pytest.raises(CliError, match="is not executable"):
        viewers.chosen("tiger", "/nonexistent", 1)
