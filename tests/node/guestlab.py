"""Boots the tiny guest in plain QEMU, without libvirt, on a network that leads nowhere."""

from __future__ import annotations

import http.client
import io
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pycdlib

from tests.waiting import wait_for

PATIENCE = 60
"""Seconds until a test gives up; nothing is measured by it."""


def seed_disk(path: Path, **files: str) -> Path:
    """A NoCloud disk. Names are written with `_` for `-`: user_data, meta_data, network_config."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, text) in enumerate(files.items()):
        data, real = text.encode(), name.replace("_", "-")
        iso.add_fp(io.BytesIO(data), len(data), f"/F{number}.;1", rr_name=real, joliet_path=f"/{real}")
    iso.write(str(path))
    iso.close()
    return path


class RunningGuest:
    """A running guest. Sockets and logs lie in `folder`."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.folder = folder
        self.process = process
        self.port = port

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        """Status and body of one request to the guest's port 80."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body.encode() if body is not None else None)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def report(self) -> dict[str, Any]:
        status, text = self.request("GET", "/")
        assert status == 200
        answer: dict[str, Any] = json.loads(text)
        return answer

    def log(self) -> str:
        """What the guest has written on its serial port so far."""
        return (self.folder / "serial.log").read_text(errors="replace")

    def wait_ready(self) -> None:
        wait_for(lambda: "hyperlet guest ready:" in self.log() or self.process.poll(), "the guest is ready")
        assert self.process.poll() is None, self.log()

    def ask(self, name: str, *commands: str) -> list[dict[str, Any]]:
        """Send commands to one of the sockets (`qmp`, `agent`) and return the answers; events are left out."""
        answers: list[dict[str, Any]] = []
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(PATIENCE)
            s.connect(str(self.folder / name))
            lines = s.makefile("rb")
            if name == "qmp":
                lines.readline()
                commands = ("qmp_capabilities", *commands)
            for command in commands:
                s.sendall(json.dumps({"execute": command}).encode() + b"\n")
                answer = json.loads(lines.readline())
                while "event" in answer:
                    answer = json.loads(lines.readline())
                answers.append(answer)
        return answers

    def type(self, *lines: tuple[str, str]) -> str:
        """Wait for a text on the serial port, then type a line, for each pair; the last one must print `# done`.

        Returns what came after the last line.
        """
        seen = b""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(PATIENCE)
            s.connect(str(self.folder / "serial"))
            s.sendall(b"\n")  # the first prompt was printed before the socket was connected
            for wanted, line in lines:
                while wanted.encode() not in seen:
                    seen += s.recv(4096)
                seen = b""
                s.sendall(line.encode() + b"\n")
            while b"\n# done" not in seen.replace(b"\r", b""):
                seen += s.recv(4096)
        return seen.decode(errors="replace")

    def ended(self) -> int:
        return self.process.wait(PATIENCE)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def boot_guest(folder: Path, *boot: str) -> Iterator[RunningGuest]:
    """QEMU under emulation; `boot` is what differs: disks, or kernel and initrd. It ends when the context is left."""
    port = free_port()
    network = "user,id=n,restrict=on,hostname=from-dhcp,dnssearch=one.example,dnssearch=two.example"
    command = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "96", "-nodefaults"]
    command += ["-display", "none", "-no-reboot", "-netdev", f"{network},hostfwd=tcp:127.0.0.1:{port}-:80"]
    command += ["-device", "virtio-net-pci,netdev=n,mac=52:54:00:12:34:56", "-device", "virtio-serial-pci"]
    command += ["-chardev", f"socket,id=s,path={folder}/serial,server=on,wait=off,logfile={folder}/serial.log"]
    command += ["-serial", "chardev:s", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    command += ["-chardev", f"socket,id=a,path={folder}/agent,server=on,wait=off"]
    command += ["-device", "virtserialport,chardev=a,name=org.qemu.guest_agent.0"]
    process = subprocess.Popen([*command, *boot], stdin=subprocess.DEVNULL)
    try:
        wait_for((folder / "serial.log").exists, "QEMU has opened its log")
        yield RunningGuest(folder, process, port)
    finally:
        process.kill()
        process.wait()
