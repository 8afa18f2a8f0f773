"""hyperctl as users run it: in a terminal (tmux), with a real VNC viewer, with curl behind a forwarded port."""

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
from tests.e2e.support import BOOT, ROOT, E2eNamespace, Json, VmUnderTest, http
from tests.waiting import wait_for

PASSWORD = "s3cret"
SSH_PORT = 2222
# A server with an SSH banner, so that a connection through ssh can be recognised.
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

    def __init__(self, space: E2eNamespace) -> None:
        where = (f"--kubeconfig={space.kubectl.kubeconfig}", f"--namespace={space.name}")
        self.words = [sys.executable, "-m", "cli", *where]

    def run(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run hyperctl, whatever its exit status."""
        return subprocess.run(
            [*self.words, *words], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=180, errors="replace"
        )

    def __call__(self, *words: str) -> str:
        """Standard output; asserts exit status 0."""
        done = self.run(*words)
        assert done.returncode == 0, f"hyperctl {shlex.join(words)}: {done.stderr}"
        return done.stdout

    def refused(self, *words: str) -> str:
        """The one-line error message; asserts exit status 1."""
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
def hyperctl(space: E2eNamespace) -> Hyperctl:
    return Hyperctl(space)


@pytest.fixture(scope="module")
def machine(space: E2eNamespace) -> Iterator[VmUnderTest]:
    made = space.apply_vm(virtual_machine("cli", tiny(), cloud_init(SEED)))
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


def decode_png(data: bytes) -> tuple[int, int, bytes]:
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


def test_console_login_and_exit_restore_terminal(machine: VmUnderTest, hyperctl: Hyperctl, terminal: Tmux) -> None:
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


def test_first_console_is_notified_of_takeover_and_still_shows_output(
    machine: VmUnderTest, hyperctl: Hyperctl, tmp_path: Path
) -> None:
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


def test_console_of_missing_vm_or_without_permission_is_refused(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
    assert "not found" in hyperctl.refused("console", "nobody")
    assert "cli" in hyperctl.refused("console", "cli", "--as=system:serviceaccount:default:nobody")


# ---- the screen


def test_screenshot_is_png_of_guest_screen(machine: VmUnderTest, hyperctl: Hyperctl, tmp_path: Path) -> None:
    hyperctl("vnc", "screenshot", "cli", "--file", str(tmp_path / "screen.png"))
    width, height, rows = decode_png((tmp_path / "screen.png").read_bytes())
    assert width >= 640 and height >= 400
    assert len(set(rows)) > 4, "the screen is one colour"
    done = subprocess.run([*hyperctl.words, "vnc", "screenshot", "cli", "-f", "-"], cwd=ROOT, capture_output=True)
    assert decode_png(done.stdout)[:2] == (width, height)


def test_two_vnc_viewers_receive_screen_simultaneously(
    machine: VmUnderTest, hyperctl: Hyperctl, tmp_path: Path
) -> None:
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


def test_port_forward_reaches_guest_web_server(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
    with hyperctl.running("port-forward", "vmi/cli", "0:80") as line:
        port = int(line.partition(" ->")[0].rpartition(":")[2])
        assert json.loads(http(f"http://127.0.0.1:{port}/"))["hostname"] == "cli"
        done = subprocess.run(["curl", "-sS", f"http://127.0.0.1:{port}/"], capture_output=True, text=True, timeout=60)
        assert json.loads(done.stdout)["hostname"] == "cli", done.stderr


def test_port_forward_stdio_reaches_guest_web_server(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
    target = f"vm/cli/{machine.space.name}"
    done = hyperctl.run("port-forward", "--stdio=true", target, "80", stdin="GET / HTTP/1.0\r\n\r\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.partition("\n\n")[2])["hostname"] == "cli"


def test_ssh_reaches_guest(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
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


def test_port_forward_to_closed_port_is_refused(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
    assert "81" in hyperctl.refused("port-forward", "--stdio", "vmi/cli", "81")


def test_expose_creates_service_that_reaches_guest(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
    hyperctl("expose", "vm", "cli", "--name=cli-web", "--port=8000", "--target-port=80")
    address = (machine.kubectl.get("service", "cli-web") or {})["spec"]["clusterIP"]
    told = wait_for(lambda: json.loads(http(f"http://{address}:8000/")), "the Service answers")
    assert told["hostname"] == "cli"


# ---- the verbs


def test_guest_agent_commands_return_os_users_and_file_systems(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
    told: Json = wait_for(
        lambda: json.loads(hyperctl("guestosinfo", "cli")), "the guest agent tells its system", seconds=BOOT
    )
    assert told["os"]["kernelRelease"], told
    assert isinstance(json.loads(hyperctl("userlist", "cli"))["items"], list)
    assert "items" in json.loads(hyperctl("fslist", "cli", "-o", "json"))


def test_pause_and_unpause_change_vm_status(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
    hyperctl("pause", "vm", "cli")
    machine.until_status("Paused")
    assert "paused" in hyperctl.refused("port-forward", "--stdio", "vmi/cli", "80").lower()
    hyperctl("unpause", "vmi", "cli")
    machine.until_status("Running").answer()


def test_soft_reboot_and_reset_change_boot_id(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
    first = machine.answer()["bootId"]
    hyperctl("soft-reboot", "cli")
    second = machine.answer(other_than=first)["bootId"]
    hyperctl("reset", "cli")
    machine.answer(other_than=second)


def test_stop_start_and_restart_change_vm_state(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
    hyperctl("stop", "cli", "--wait")
    assert machine.status() == "Stopped"
    assert "not running" in hyperctl.refused("stop", "cli").lower()
    hyperctl("start", "cli", "--wait")
    assert "already running" in hyperctl.refused("start", "cli")
    first = machine.answer()["bootId"]
    hyperctl("restart", "cli", "--wait")
    machine.answer(other_than=first)
    hyperctl("stop", "cli", "--force", "--grace-period=0", "--wait")


def test_start_dry_run_does_not_start_vm(space: E2eNamespace, hyperctl: Hyperctl) -> None:
    space.apply_vm(idle("tried", run="Halted"))
    assert "Dry Run execution" in hyperctl("start", "tried", "--dry-run")
    assert space.existing_vm("tried").status() in ("", "Stopped")
    hyperctl("start", "tried", "--paused", "--wait")
    assert space.existing_vm("tried").status() == "Paused"
    space.existing_vm("tried").delete()


def test_migration_and_volume_hotplug_are_refused(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
    machine.run("Always")
    machine.until_status("Running")
    hyperctl.refused("migrate", "cli")
    assert "no migration to cancel" in hyperctl.refused("migrate-cancel", "cli")
    hyperctl.refused("removevolume", "cli", "--volume-name=root")
    assert "neither" in hyperctl.refused("addvolume", "cli", "--volume-name=nothing")


# ---- the rest


def test_created_manifest_is_accepted_by_api_server(space: E2eNamespace, hyperctl: Hyperctl) -> None:
    data = base64.b64encode(SEED.encode()).decode()
    made = hyperctl("create", "vm", "--name=made", "--volume-containerdisk=src:x.example/y:1", "--cpu=1",
                    f"--cloud-init-user-data={data}", "--run-strategy=Halted", "-o", "json")  # fmt: skip
    space.kubectl("apply", "-f", "-", stdin=made)
    expanded = json.loads(hyperctl("expand", "--vm", "made", "-o", "json"))
    assert expanded["spec"]["template"]["spec"]["domain"]["cpu"]["cores"] == 1
    space.existing_vm("made").delete()


def test_version_prints_client_and_server_version(hyperctl: Hyperctl) -> None:
    told = json.loads(hyperctl("version", "-o", "json"))
    ours = told["clientVersion"]["gitVersion"].removeprefix("v")
    assert told["serverVersion"]["gitVersion"].endswith(f"+hyperlet.{ours}")


def test_kubectl_runs_virt_plugin(space: E2eNamespace, tmp_path: Path) -> None:
    """The installed entry point, under the name that kubectl looks for."""
    plugin = tmp_path / "kubectl-virt"
    plugin.write_text(f"#!{sys.executable}\nimport sys\nfrom cli.__main__ import main\nsys.exit(main())\n")
    plugin.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["kubectl", "virt", "--help"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("Usage: kubectl virt"), done.stderr


def test_vnc_proxy_on_used_port_is_refused(machine: VmUnderTest, hyperctl: Hyperctl) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "cannot listen" in hyperctl.refused("vnc", "cli", "--proxy-only", f"--port={port}")
