"""A node and its containers as network namespaces, and a CNI daemon on the node, called as a container runtime does."""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni import build
from tests.node.cnispace import Space, passing_macs

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = "/usr/lib/cni"
__all__ = ["Lab", "Space", "bridge_conf", "client", "host_local", "lab", "passing_macs", "reserved", "tuning_conf"]


class Lab:
    """The node: a namespace, a daemon in it, and the client built for tests."""

    def __init__(self, folder: Path, client: Path) -> None:
        self.folder = folder
        self.node = Space()
        self.socket = str(folder / "run" / "cni.sock")
        self.data = folder / "data"
        self.data.mkdir()
        build.install(client, folder)
        self.spaces: list[Space] = []
        self.daemon: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts the daemon and waits until it accepts calls."""
        command = ["nsenter", f"--net={self.node.path}", sys.executable, "-m", "cni", "--socket", self.socket]
        with (self.folder / "log").open("ab") as journal:
            self.daemon = subprocess.Popen(
                [*command, "--data-root", str(self.data), "--data-root", "/run/cni"], cwd=ROOT, stderr=journal
            )
        for _ in range(500):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as one:
                one.connect(self.socket)
                return
            time.sleep(0.02)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        """Ends the daemon as kubelet does."""
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait(15)
            self.daemon = None

    def container(self) -> Space:
        """A new container's namespace."""
        self.spaces.append(Space())
        return self.spaces[-1]

    def environment(self, command: str, where: Space | None, **changes: str | None) -> dict[str, str]:
        """The environment of a call; None takes a variable away."""
        given: dict[str, str | None] = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": where.path if where else None,
            "CNI_PATH": PLUGINS,
            "HYPERLET_CNI_SOCKET": self.socket,
            **changes,
        }
        return {key: value for key, value in given.items() if value is not None}

    def raw(
        self, plugin: str, command: str, stdin: bytes, where: Space | None, **changes: str | None
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs the client; `plugin` is a name, or the path of another implementation."""
        program = plugin if "/" in plugin else str(self.folder / plugin)
        environment = self.environment(command, where, **changes) | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.run(
            ["nsenter", f"--net={self.node.path}", program],
            input=stdin,
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def call(self, plugin: str, command: str, conf: dict[str, Any], where: Space | None, **changes: str | None) -> Any:
        """Makes a call that must succeed; returns its result."""
        done = self.raw(plugin, command, json.dumps(conf).encode(), where, **changes)
        if done.returncode:
            raise AssertionError(f"{plugin} {command}: {done.stdout.decode()}{done.stderr.decode()}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def refusal(
        self, plugin: str, command: str, conf: Any, where: Space | None, **changes: str | None
    ) -> dict[str, Any]:
        """Makes a call that must fail; returns its error."""
        stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
        done = self.raw(plugin, command, stdin, where, **changes)
        assert done.returncode == 1, done.stdout
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def ruleset(self) -> str:
        """nft's view of the node's rules."""
        return self.node.run("nft list ruleset")

    def clean(self, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Fails if anything of an attachment is left on the node."""
        left = set(self.node.links()) - {"lo"} - but
        assert not left, f"left behind: {left}"
        assert "cnv" not in self.ruleset()

    def close(self) -> None:
        self.stop()
        for each in [*self.spaces, self.node]:
            each.close()


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, built to take its socket from the environment."""
    program = tmp_path_factory.mktemp("client") / "client"
    build.compile_client(program, ("TEST_BUILD",))
    return program


@pytest.fixture
def lab(client: Path) -> Iterator[Lab]:
    """A node for one test."""
    with tempfile.TemporaryDirectory(prefix="hlcni-test-") as folder:
        found = Lab(Path(folder), client)
        try:
            yield found
        finally:
            found.close()


def bridge_conf(**fields: Any) -> dict[str, Any]:
    """A configuration of cnv-bridge."""
    return {"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1", **fields}


def tuning_conf(lab: Lab, where: Space, **fields: Any) -> dict[str, Any]:
    """A configuration of cnv-tuning, as second in the chain."""
    interface = {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": where.path}
    previous = {"cniVersion": "1.0.0", "interfaces": [{"name": "br1"}, interface]}
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "cnv-tuning", "dataDir": str(lab.data / "tuning")}
    return {**conf, "prevResult": previous, **fields}


def host_local(lab: Lab, *subnets: str, **fields: Any) -> dict[str, Any]:
    """An `ipam` that keeps its state in the lab."""
    ranges = [[{"subnet": subnet}] for subnet in subnets]
    return {"type": "host-local", "ranges": ranges, "dataDir": str(lab.data / "ipam"), **fields}


def reserved(lab: Lab) -> set[str]:
    """The addresses that host-local has allocated."""
    folder = lab.data / "ipam" / "net"
    return {each.name for each in folder.iterdir() if each.name[0].isdigit()} if folder.exists() else set()
