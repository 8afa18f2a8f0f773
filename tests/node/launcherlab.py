"""Launchers without containers: a supervisor as uid 107 without capabilities, in a directory and a mount namespace.

The mount namespace has an /etc/passwd and group of its own (libvirt wants its user to have a name), a /dev/net/tun that
uid 107 may open, and no /dev/kvm.
"""

import contextlib
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from api import defaults
from api.errors import InvalidObject
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from handler.vmi import sync_request as handler_sync_request
from protos import launcher_pb2 as pb
from protos import launcher_pb2_grpc
from tests.waiting import wait_for

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PYTHON = f"/usr/bin/python3.{sys.version_info.minor}"
"""Not the virtual environment's: uid 107 may not be able to reach that."""
CACHE = pathlib.Path(os.environ.get("HYPERLET_CACHE", pathlib.Path.home() / ".cache/hyperlet"), "libvirt-capabilities")
_PREPARE = """
set -e
mount --make-rprivate /
{ cat /etc/passwd; echo 'qemu:x:107:107::/nonexistent:/usr/sbin/nologin'; } > "$1/passwd"
mount --bind "$1/passwd" /etc/passwd
{ cat /etc/group; echo 'qemu:x:107:'; } > "$1/group"
mount --bind "$1/group" /etc/group
mknod "$1/tun" c 10 200; chown 107:107 "$1/tun"; mount --bind "$1/tun" /dev/net/tun
if [ -e /dev/kvm ]; then : > "$1/nothing"; chmod 0 "$1/nothing"; mount --bind "$1/nothing" /dev/kvm; fi
shift
exec setpriv --reuid=107 --regid=107 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""


def vmi(name: str = "vm", uid: str = "uid-1", **spec: Any) -> dict[str, Any]:
    """A VMI with 64 MiB and no NIC, with defaults, as the handler sends it. `spec` goes over the spec; its volumes are
    virtio disks unless it has a domain of its own."""
    disks = [{"name": volume["name"], "disk": {"bus": "virtio"}} for volume in spec.get("volumes", ())]
    document = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"namespace": "test", "name": name, "uid": uid},
        "spec": {
            "domain": {"devices": {"autoattachPodInterface": False, "disks": disks}, "memory": {"guest": "64Mi"}},
            **spec,
        },
    }
    decoded = codec.decode(VirtualMachineInstance, json.dumps(document))
    return json.loads(codec.encode(defaults.default_vmi(decoded)))  # type: ignore[no-any-return]


def disk_vmi(name: str = "vm", uid: str = "uid-1", **spec: Any) -> dict[str, Any]:
    """A VMI with one containerDisk, `root`."""
    return vmi(name, uid, volumes=[{"name": "root", "containerDisk": {"image": "guest"}}], **spec)


def sync_request(document: dict[str, Any], nics: list[pb.Nic]) -> pb.SyncRequest:
    """The handler's request for a VMI. The document is sent as it is, also one that cannot be decoded."""
    try:
        request = handler_sync_request.build(codec.decode(VirtualMachineInstance, document), nics)
    except InvalidObject:
        request = pb.SyncRequest(vmi_uid=document["metadata"].get("uid"), nics=nics)
    request.vmi = json.dumps(document).encode()
    return request


class Pod:
    """One launcher. `root` is where its `/` would be."""

    def __init__(self, grace: float = 30.0) -> None:
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="launcher-"))
        self.root.chmod(0o755)
        self.run = self.root / "run/hyperlet"
        self.grace = grace
        self.output = self.root / "output"
        self.errors = self.root / "errors"
        self.process: subprocess.Popen[bytes] | None = None
        for folder in ("run/hyperlet", "images", "volumes", "cloudinit", "dev/volumes"):
            (self.root / folder).mkdir(parents=True)
        for folder in ("run/hyperlet", "dev"):
            (self.root / folder).chmod(0o777)

    def image(self, volume: str, data: bytes, name: str = "disk/guest.img") -> pathlib.Path:
        """Puts a file into the image of a volume."""
        path = self.root / "images" / volume / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def start(self, network: int = 0, wake: bool = True, **environment: str) -> "Pod":
        """Starts the supervisor, in the network namespace of the process `network` if that is given."""
        baked = self.root / "baked"
        if CACHE.is_dir():
            shutil.copytree(CACHE, baked)
            subprocess.run(["chmod", "-R", "a+rX", baked], check=True)
        env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": f"{REPOSITORY}:{sysconfig.get_path('purelib')}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPERLET_ROOT": str(self.root),
            "HYPERLET_GRACE_SECONDS": str(self.grace),
            "HYPERLET_LIBVIRT_CACHE": str(baked),
            "HYPERLET_LOG": "info",
            **environment,
        }
        command = [PYTHON, "-I", "-S", "-E", str(REPOSITORY / "launcher/supervisor/supervisor.py")]
        enter = ["nsenter", f"--net=/proc/{network}/ns/net"] if network else []
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*enter, "unshare", "--mount", "sh", "-c", _PREPARE, "sh", str(self.root), *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=env, cwd="/",
            )  # fmt: skip
        if wake:
            self.wake()
        return self

    def wake(self) -> None:
        """Wakes the launcher, as the handler does when it grants a start slot."""

        def woken() -> bool:
            try:
                fd = os.open(self.run / "wake.fifo", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return False
            os.write(fd, b"!")
            os.close(fd)
            return True

        wait_for(woken, "the supervisor waits to be woken")

    # -- talking to it

    @contextlib.contextmanager
    def client(self, seconds: float = 30.0) -> Iterator[launcher_pb2_grpc.LauncherStub]:
        """A client, as soon as the socket is there."""
        socket = self.run / "launcher.sock"
        wait_for(socket.exists, "the socket", seconds)
        with grpc.insecure_channel(f"unix:{socket}", options=[("grpc.max_receive_message_length", 1 << 20)]) as channel:
            yield launcher_pb2_grpc.LauncherStub(channel)

    def sync(self, document: dict[str, Any], nics: list[pb.Nic] | None = None, seconds: float = 60.0) -> pb.Report:
        """Calls Sync. Raises grpc.RpcError."""
        with self.client() as client:
            return client.Sync(sync_request(document, nics or []), timeout=seconds)

    def report(self) -> pb.Report:
        """The state now."""
        with self.client() as client:
            for report in client.Watch(pb.WatchRequest(), timeout=30):
                return report
        raise AssertionError("Watch sent nothing")

    def wait_state(self, *states: int, seconds: float = 30.0) -> pb.Report:
        """The first report with one of these states."""
        deadline = time.monotonic() + seconds
        seen: list[str] = []
        while time.monotonic() < deadline:
            with self.client() as client, contextlib.suppress(grpc.RpcError):
                for report in client.Watch(pb.WatchRequest(), timeout=deadline - time.monotonic()):
                    if report.state in states:
                        return report
                    seen.append(f"{pb.DomainState.Name(report.state)} {report.reason}")
        raise AssertionError(f"none of {states}, but {seen}\n{self.errors.read_text()}")

    # -- processes

    @property
    def pid(self) -> int:
        """The supervisor's: everything in front of it was exec."""
        assert self.process is not None
        return self.process.pid

    def child(self, word: str) -> int:
        """The PID of the supervisor's child with `word` in its command; 0 if there is none."""
        for pid in children(self.pid):
            with contextlib.suppress(OSError):
                if word in pathlib.Path(f"/proc/{pid}/cmdline").read_text():
                    return pid
        return 0

    def wait(self, seconds: float = 30.0) -> int:
        """The supervisor's exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def terminate(self) -> None:
        """SIGTERM, as kubelet sends it."""
        os.kill(self.pid, signal.SIGTERM)

    def termination(self) -> dict[str, str]:
        """The termination message."""
        return json.loads((self.root / "dev/termination-log").read_text())  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends everything and removes the directory."""
        if self.process and self.process.poll() is None:
            family = [self.pid, *descendants(self.pid)]
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> "Pod":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def children(pid: int) -> list[int]:
    """The children of a process."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    return [found for child in children(pid) for found in (child, *descendants(child))]


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def follow(pod: Pod) -> "queue.Queue[pb.Report | None]":
    """All reports of a Watch, and None when the launcher has ended it."""
    reports: queue.Queue[pb.Report | None] = queue.Queue()

    def run() -> None:
        with pod.client() as client, contextlib.suppress(grpc.RpcError):
            for report in client.Watch(pb.WatchRequest()):
                reports.put(report)
        reports.put(None)

    threading.Thread(target=run, daemon=True).start()
    return reports


def drain(reports: "queue.Queue[pb.Report | None]") -> list[pb.Report]:
    """The reports of `follow`, after the launcher has ended the stream."""
    return list(iter(lambda: reports.get(timeout=30), None))
