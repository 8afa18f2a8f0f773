"""hyperctl as a person uses it: in a terminal (tmux), with a real VNC viewer, with curl behind a forwarded port."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.manifests import cloud_init, idle, tiny, virtual_machine
from tests.e2e.support import BOOT, ROOT, Json, Machine, Space, http
from tests.waiting import wait_for

PASSWORD = "s3cret"
SSH_PORT = 2222
# Something that greets like an SSH server, so that the way of ssh can be told from any other.
SEED = f"""#cloud-config
hostname: cli
password: {PASSWORD}
chpasswd: {{ expire: False }}
write_files:
  - path: /run/greet
    permissions: '0755'
    content: |
      #!/bin/sh
      printf 'SSH-2.0-tiny_guest\\r\\n'
      exec cat > /dev/null
runcmd:
  - nc -ll -p {SSH_PORT} -e /run/greet < /dev/null > /dev/null 2>&1 &
"""


class Hyperctl:
    """hyperctl with the kubeconfig of the cluster, in the namespace of this module."""

    def __init__(self, space: Space) -> None:
        where = (f"--kubeconfig={space.kubectl.kubeconfig}", f"--namespace={space.name}")
        self.words = [sys.executable, "-m", "cli", *where]

    def run(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Whatever comes of it."""
        return subprocess.run(
            [*self.words, *words], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=180, errors="replace"
        )

    def __call__(self, *words: str) -> str:
        """Its output; it must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, f"hyperctl {shlex.join(words)}: {done.stderr}"
        return done.stdout

    def refused(self, *words: str) -> str:
        """Its one sentence of complaint; it must fail."""
        done = self.run(*words)
        assert done.returncode == 1, f"hyperctl {shlex.join(words)} ended with {done.returncode}: {done.stdout}"
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    @contextlib.contextmanager
    def running(self, *words: str) -> Iterator[str]:
        """In the background, ended with ctrl-C; yields the first line of output."""
        process = subprocess.Popen(
            [*self.words, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            assert process.stdout and process.stderr
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield line
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(30) == 0
            finally:
                process.kill()
                process.communicate()


class Tmux:
    """A terminal window with a shell in it, in a tmux server of its own."""

    def __init__(self, folder: Path) -> None:
        self._command = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        self._tmux("new-session", "-d", "-x", "120", "-y", "40", "env PS1='shell> ' sh")

    def _tmux(self, *words: str) -> str:
        return subprocess.run([*self._command, *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    def type(self, *keys: str) -> None:
        """Keys by tmux' names; texts as they are."""
        self._tmux("send-keys", *keys)

    def screen(self) -> str:
        """What the window shows."""
        return self._tmux("capture-pane", "-p")

    def until(self, text: str, seconds: float = 30) -> str:
        """Waits until the window shows a text."""
        return wait_for(lambda: self.screen() if text in self.screen() else "", f"the window shows {text!r}",
                        seconds=seconds, explain=self.screen)  # fmt: skip

    def until_prompt(self) -> None:
        """Waits until the shell asks for the next command."""
        wait_for(
            lambda: self.screen().rstrip().endswith("shell>"), "the shell's prompt", seconds=30, explain=self.screen
        )

    def close(self) -> None:
        """Ends the window and its server."""
        self._tmux("kill-server")


@pytest.fixture(scope="module")
def hyperctl(space: Space) -> Hyperctl:
    return Hyperctl(space)


@pytest.fixture(scope="module")
def machine(space: Space) -> Iterator[Machine]:
    made = space.machine(virtual_machine("cli", tiny(), cloud_init(SEED)))
    made.until_status("Running").answer()
    yield made
    made.delete()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Tmux]:
    window = Tmux(tmp_path)
    try:
        yield window
    finally:
        window.close()


def picture(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and the bytes of a PNG's rows (https://www.w3.org/TR/png-3/)."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, packed, size = 8, b"", (0, 0)
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            size = struct.unpack(">II", body[:8])
        packed += body if kind == b"IDAT" else b""
        at += 12 + length
    return *size, zlib.decompress(packed)


# ---- the console


def test_a_person_logs_in_on_the_console_and_leaves(machine: Machine, hyperctl: Hyperctl, terminal: Tmux) -> None:
    terminal.until_prompt()
    terminal.type(shlex.join([*hyperctl.words, "console", "cli"]), "Enter")
    terminal.until("Press Ctrl+] or Ctrl+5 to exit console.")
    terminal.type("Enter")
    terminal.until("login:")
    terminal.type("tiny", "Enter")
    terminal.until("assword:")
    terminal.type(PASSWORD, "Enter")
    terminal.until("tiny@cli:~$")
    terminal.type("sleep 600", "Enter")
    terminal.until("sleep 600")
    terminal.type("C-c")
    terminal.type("echo I am $(id -un)", "Enter")
    terminal.until("I am tiny")
    terminal.type("exit", "Enter")
    terminal.type("C-]")
    terminal.until_prompt()
    terminal.type("stty -a | grep -q ' echo ' && echo as it $(echo was)", "Enter")
    terminal.until("as it was")
    assert machine.status() == "Running"


def test_who_is_taken_over_is_told_and_watches(machine: Machine, hyperctl: Hyperctl, tmp_path: Path) -> None:
    windows = []
    try:
        for name in ("first", "second"):
            folder = tmp_path / name
            folder.mkdir()
            windows.append(Tmux(folder))
            windows[-1].until_prompt()
            windows[-1].type(shlex.join([*hyperctl.words, "console", "cli"]), "Enter")
            windows[-1].until("to exit console.")
        first, second = windows
        word = f"hello-{secrets.token_hex(4)}"
        second.type(word)
        second.until(word)
        first.until(word)
        first.until("has taken over the console")
        second.type("C-u", "C-]")
        first.type("C-]")
        for window in windows:
            window.until_prompt()
    finally:
        for window in windows:
            window.close()


def test_a_console_of_nobody_is_refused(machine: Machine, hyperctl: Hyperctl) -> None:
    assert "not found" in hyperctl.refused("console", "nobody")
    assert "cli" in hyperctl.refused("console", "cli", "--as=system:serviceaccount:default:nobody")


# ---- the screen


def test_a_screenshot_shows_the_guests_screen(machine: Machine, hyperctl: Hyperctl, tmp_path: Path) -> None:
    hyperctl("vnc", "screenshot", "cli", "--file", str(tmp_path / "screen.png"))
    width, height, rows = picture((tmp_path / "screen.png").read_bytes())
    assert width >= 640 and height >= 400
    assert len(set(rows)) > 4, "the screen is one colour"
    done = subprocess.run([*hyperctl.words, "vnc", "screenshot", "cli", "-f", "-"], cwd=ROOT, capture_output=True)
    assert picture(done.stdout)[:2] == (width, height)


def test_real_viewers_see_the_screen_together(machine: Machine, hyperctl: Hyperctl, tmp_path: Path) -> None:
    assert shutil.which("vncsnapshot"), "vncsnapshot is missing: python -m cluster deps --tests"
    with hyperctl.running("vnc", "cli", "--proxy-only") as line:
        port = json.loads(line)["port"]
        # vncsnapshot(1) takes display numbers, which count from 5900, and two colons before a port.
        viewers = [
            subprocess.Popen(
                ["vncsnapshot", "-quality", "50", f"127.0.0.1:{port - 5900}", str(tmp_path / f"{number}.jpeg")],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for number in range(2)
        ]  # fmt: skip
        for viewer in viewers:
            said, _ = viewer.communicate(timeout=60)
            assert viewer.returncode == 0, said
    for number in range(2):
        data = (tmp_path / f"{number}.jpeg").read_bytes()
        assert data.startswith(b"\xff\xd8\xff") and len(data) > 2000


# ---- ports


def test_a_forwarded_port_reaches_the_guests_web_server(machine: Machine, hyperctl: Hyperctl) -> None:
    with hyperctl.running("port-forward", "vmi/cli", "0:80") as line:
        port = int(line.partition(" ->")[0].rpartition(":")[2])
        assert json.loads(http(f"http://127.0.0.1:{port}/"))["hostname"] == "cli"
        done = subprocess.run(["curl", "-sS", f"http://127.0.0.1:{port}/"], capture_output=True, text=True, timeout=60)
        assert json.loads(done.stdout)["hostname"] == "cli", done.stderr


def test_a_port_of_a_vm_on_standard_output(machine: Machine, hyperctl: Hyperctl) -> None:
    target = f"vm/cli/{machine.space.name}"
    done = hyperctl.run("port-forward", "--stdio=true", target, "80", stdin="GET / HTTP/1.0\r\n\r\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.partition("\n\n")[2])["hostname"] == "cli"


def test_ssh_gets_to_the_guest(machine: Machine, hyperctl: Hyperctl) -> None:
    with subprocess.Popen(
        [*hyperctl.words, "ssh", "-p", str(SSH_PORT), "-t", "-v", "-t", "-oConnectTimeout=60", "tiny@vmi/cli"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
    ) as process:  # fmt: skip
        try:
            assert process.stderr
            said = []
            for line in process.stderr:
                said.append(line)
                if "remote software version" in line:
                    break
            assert "remote software version tiny_guest" in said[-1], said
        finally:
            process.terminate()


def test_a_port_on_which_nobody_listens(machine: Machine, hyperctl: Hyperctl) -> None:
    assert "81" in hyperctl.refused("port-forward", "--stdio", "vmi/cli", "81")


def test_expose_makes_a_service_that_answers(machine: Machine, hyperctl: Hyperctl) -> None:
    hyperctl("expose", "vm", "cli", "--name=cli-web", "--port=8000", "--target-port=80")
    address = (machine.kubectl.get("service", "cli-web") or {})["spec"]["clusterIP"]
    told = wait_for(lambda: json.loads(http(f"http://{address}:8000/")), "the Service answers")
    assert told["hostname"] == "cli"


# ---- the verbs


def test_what_the_guest_agent_tells(machine: Machine, hyperctl: Hyperctl) -> None:
    told: Json = wait_for(
        lambda: json.loads(hyperctl("guestosinfo", "cli")), "the guest agent tells its system", seconds=BOOT
    )
    assert told["os"]["kernelRelease"], told
    assert isinstance(json.loads(hyperctl("userlist", "cli"))["items"], list)
    assert "items" in json.loads(hyperctl("fslist", "cli", "-o", "json"))


def test_pause_and_unpause(machine: Machine, hyperctl: Hyperctl) -> None:
    hyperctl("pause", "vm", "cli")
    machine.until_status("Paused")
    assert "paused" in hyperctl.refused("port-forward", "--stdio", "vmi/cli", "80").lower()
    hyperctl("unpause", "vmi", "cli")
    machine.until_status("Running").answer()


def test_soft_reboot_and_reset(machine: Machine, hyperctl: Hyperctl) -> None:
    first = machine.answer()["bootId"]
    hyperctl("soft-reboot", "cli")
    second = machine.answer(other_than=first)["bootId"]
    hyperctl("reset", "cli")
    machine.answer(other_than=second)


def test_stop_start_and_restart(machine: Machine, hyperctl: Hyperctl) -> None:
    hyperctl("stop", "cli", "--wait")
    assert machine.status() == "Stopped"
    assert "not running" in hyperctl.refused("stop", "cli").lower()
    hyperctl("start", "cli", "--wait")
    assert "already running" in hyperctl.refused("start", "cli")
    first = machine.answer()["bootId"]
    hyperctl("restart", "cli", "--wait")
    machine.answer(other_than=first)
    hyperctl("stop", "cli", "--force", "--grace-period=0", "--wait")


def test_a_start_that_is_only_tried(space: Space, hyperctl: Hyperctl) -> None:
    space.machine(idle("tried", run="Halted"))
    assert "Dry Run execution" in hyperctl("start", "tried", "--dry-run")
    assert space.known("tried").status() in ("", "Stopped")
    hyperctl("start", "tried", "--paused", "--wait")
    assert space.known("tried").status() == "Paused"
    space.known("tried").delete()


def test_what_is_not_there_yet_is_told(machine: Machine, hyperctl: Hyperctl) -> None:
    machine.run("Always")
    machine.until_status("Running")
    hyperctl.refused("migrate", "cli")
    assert "no migration to cancel" in hyperctl.refused("migrate-cancel", "cli")
    hyperctl.refused("removevolume", "cli", "--volume-name=root")
    assert "neither" in hyperctl.refused("addvolume", "cli", "--volume-name=nothing")


# ---- the rest


def test_a_made_manifest_is_taken(space: Space, hyperctl: Hyperctl) -> None:
    data = base64.b64encode(SEED.encode()).decode()
    made = hyperctl("create", "vm", "--name=made", "--volume-containerdisk=src:x.example/y:1", "--cpu=1",
                    f"--cloud-init-user-data={data}", "--run-strategy=Halted", "-o", "json")  # fmt: skip
    space.kubectl("apply", "-f", "-", stdin=made)
    expanded = json.loads(hyperctl("expand", "--vm", "made", "-o", "json"))
    assert expanded["spec"]["template"]["spec"]["domain"]["cpu"]["cores"] == 1
    space.known("made").delete()


def test_versions(hyperctl: Hyperctl) -> None:
    told = json.loads(hyperctl("version", "-o", "json"))
    ours = told["clientVersion"]["gitVersion"].removeprefix("v")
    assert told["serverVersion"]["gitVersion"].endswith(f"+hyperlet.{ours}")


def test_kubectl_finds_the_plugin(space: Space, tmp_path: Path) -> None:
    """The installed entry point, by the name under which kubectl looks for it."""
    plugin = tmp_path / "kubectl-virt"
    plugin.write_text(f"#!{sys.executable}\nimport sys\nfrom cli.__main__ import main\nsys.exit(main())\n")
    plugin.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["kubectl", "virt", "--help"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("Usage: kubectl virt"), done.stderr


def test_a_port_that_is_taken_is_told(machine: Machine, hyperctl: Hyperctl) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "cannot listen" in hyperctl.refused("vnc", "cli", "--proxy-only", f"--port={port}")
