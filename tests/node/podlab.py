"""Pods as the handler sees them: a directory below kubelet's, a cgroup, namespaces, and a launcher.

The launcher implements the real protocol without a VM; a test sets its behaviour.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

from handler.node import pod_processes
from kit import proc
from tests.node import netlab

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SOCKET = "volumes/kubernetes.io~empty-dir/hyperlet/launcher.sock"
BASE = 7 << 16
"""The node's user that a pod's root is, in a pod with a user namespace."""


def _cgroups() -> pathlib.Path:
    for candidate in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        if pathlib.Path(candidate, "cgroup.procs").exists():
            return pathlib.Path(candidate)
    raise RuntimeError("no cgroup file system")


class Cgroup:
    """A cgroup of a pod's name, removed at the end."""

    def __init__(self, pod_uid: str, form: str = "pod{}") -> None:
        self.path = _cgroups() / f"hl-test-{os.getpid()}" / form.format(pod_uid) / "container"
        self.path.mkdir(parents=True)

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            for directory in (self.path, self.path.parent, self.path.parent.parent):
                directory.rmdir()


def sandbox(pod_uid: str) -> proc.Process | None:
    """The first process of a pod, on a machine whose first process may not be looked at."""
    return pod_processes.sandbox(pod_uid, "/proc/self/ns/net")


class Sandbox:
    """The process that a container runtime starts first in a pod, in network and user namespaces that it makes.

    `users`: the pod has a user namespace of its own, whose 65536 users are the node's from BASE on.
    """

    SCRIPT = """
import ctypes, os, sys, time
assert ctypes.CDLL(None).unshare(int(sys.argv[1])) == 0
print("up", flush=True)
sys.stdin.readline()
if sys.argv[2]:
    os.chroot(sys.argv[2])
print("in", flush=True)
time.sleep(600)
"""

    def __init__(self, users: bool, namespace: netlab.Namespace | None = None, root: str = "") -> None:
        enter = ["nsenter", f"--net=/proc/{namespace.pid}/ns/net"] if namespace else ["unshare", "--net"]
        flags = 0x10000000 if users else 0  # CLONE_NEWUSER
        if users and namespace is None:
            # CLONE_NEWNET and CLONE_NEWNS: ones that the user namespace owns, as in a real pod
            enter, flags = [], flags | 0x40000000 | 0x00020000
        self._process = subprocess.Popen(
            [*enter, sys.executable, "-c", self.SCRIPT, str(flags), root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stdout.readline() == "up\n"
        self.pid = self._process.pid
        if users:
            for table in ("uid_map", "gid_map"):
                pathlib.Path(f"/proc/{self.pid}/{table}").write_text(f"0 {BASE} 65536")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "in\n"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Pod:
    """A pod's directory, cgroup and sandbox. `namespace`: a network namespace, or None for one of its own without
    links. `users`: the pod has a user namespace."""

    def __init__(self, pods: pathlib.Path, namespace: netlab.Namespace | None = None, users: bool = False) -> None:
        self.uid = str(uuid.uuid4())
        self.pods = pods
        self.directory = pods / self.uid / SOCKET
        self.directory.parent.mkdir(parents=True)
        base = BASE if users else 0
        # In a real pod the volume is an id-mapped mount: on the disk it belongs to 107, and so it does here without.
        os.chown(self.directory.parent, base + 107, base + 107)
        self.socket = self.directory
        self.cgroup = Cgroup(self.uid)
        self.sandbox = Sandbox(users, namespace)
        self.cgroup.add(self.sandbox.pid)
        self.users = users
        self._launchers: list[FakeLauncher] = []

    def launcher(self, uid: int = 107, in_cgroup: bool = True, path: pathlib.Path | None = None) -> "FakeLauncher":
        """Starts a launcher that listens on the pod's socket."""
        enter = ["nsenter", f"--net=/proc/{self.sandbox.pid}/ns/net", "unshare", "--mount"]
        joined = self.sandbox.pid if self.users else 0
        started = FakeLauncher(enter, path or self.socket, uid, self.cgroup if in_cgroup else None, joined)
        self._launchers.append(started)
        return started

    def close(self) -> None:
        for launcher in self._launchers:
            launcher.kill()
        self.sandbox.close()
        self.cgroup.close()


class FakeLauncher:
    """A launcher in another process. `set_behaviour` controls it, `syncs` returns its Sync requests."""

    def __init__(
        self, enter: list[str], socket: pathlib.Path, uid: int, cgroup: Cgroup | None, users_of: int = 0
    ) -> None:
        self.process = subprocess.Popen(
            [*enter, sys.executable, "-m", "tests.node.podlab", str(socket), str(uid), str(users_of)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        if cgroup is not None:
            cgroup.add(self.process.pid)
        self.set_behaviour(start=True)
        self._expect("up")

    @property
    def pid(self) -> int:
        return self.process.pid

    def set_behaviour(self, **order: Any) -> None:
        """`report={...}` publishes a report, `refuse=[CODE, message]` refuses the next Syncs,
        `refuse=None` accepts them, `plugs=False` keeps the NICs of the domain,
        `starts=False` answers Sync and starts nothing."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        if "start" not in order:
            self._expect("done")

    def syncs(self) -> list[dict[str, Any]]:
        """The Sync requests received."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"syncs": True}) + "\n")
        found: list[dict[str, Any]] = json.loads(self.process.stdout.readline())
        return found

    def _expect(self, word: str) -> None:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line == word, line

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def pod(pods: pathlib.Path, namespace: netlab.Namespace | None = None, users: bool = False) -> Iterator[Pod]:
    """A pod until the end of the block."""
    made = Pod(pods, namespace, users)
    try:
        yield made
    finally:
        made.close()


async def _serve(socket: str, uid: int) -> None:
    import asyncio

    import grpc
    import grpc.aio
    from google.protobuf import json_format

    from protos import launcher_pb2 as pb
    from protos import launcher_pb2_grpc as services

    class Service(services.LauncherServicer):
        def __init__(self) -> None:
            self.report = pb.Report()
            self.changed = asyncio.Condition()
            self.refuse: list[str] | None = None
            self.syncs: list[pb.SyncRequest] = []
            self.plugs = True
            self.starts = True
            self.nics: list[dict[str, Any]] = []

        def plug(self, request: pb.SyncRequest) -> None:
            """The NICs of the domain of a guest that releases NICs immediately."""
            up = {link.name: link.up for link in request.links}
            self.nics = [{"name": nic.name, "mac": nic.mac, "link_up": up[nic.name]} for nic in request.nics]

        async def publish(self, **fields: Any) -> None:
            async with self.changed:
                report = pb.Report()
                report.CopyFrom(self.report)
                for name in fields:
                    report.ClearField(name)
                json_format.ParseDict(fields, report)
                report.sequence += 1
                self.report = report
                self.changed.notify_all()

        async def Sync(self, request, context):
            self.syncs.append(request)
            if self.plugs:
                self.plug(request)
            if self.refuse:
                await context.abort(grpc.StatusCode[self.refuse[0]], self.refuse[1])
            if self.report.state == pb.DOMAIN_STATE_NONE and self.starts:
                await self.publish(
                    nics=self.nics,
                    state="DOMAIN_STATE_RUNNING",
                    reason="Booted",
                    accelerator="tcg",
                    machine="pc-q35-7.2",
                    vmi_uid=request.vmi_uid,
                )
            elif self.plugs:
                await self.publish(nics=self.nics)
            return self.report

        async def Watch(self, request, context):
            sequence = -1
            while True:
                async with self.changed:
                    while self.report.sequence == sequence:
                        await self.changed.wait()
                sequence = self.report.sequence
                yield self.report
                if self.report.state in (pb.DOMAIN_STATE_SHUTOFF, pb.DOMAIN_STATE_CRASHED):
                    return

    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    service = Service()
    server = grpc.aio.server()
    services.add_LauncherServicer_to_server(service, server)
    if uid:
        os.setgid(uid)
        os.setuid(uid)
    # As the real one: bound under another name, then moved over what is there.
    # By a short relative name: the path of a socket has room for 107 characters.
    os.chdir(pathlib.Path(socket).parent)
    server.add_insecure_port("unix:launcher.sock.new")
    await server.start()
    pathlib.Path("launcher.sock.new").rename("launcher.sock")
    print("up", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        if "syncs" in order:
            print(
                json.dumps(
                    [json_format.MessageToDict(sync, preserving_proto_field_name=True) for sync in service.syncs]
                ),
                flush=True,
            )
            continue
        if "report" in order:
            await service.publish(**order["report"])
        if "refuse" in order:
            service.refuse = order["refuse"]
        if "starts" in order:
            service.starts = order["starts"]
        if "plugs" in order:
            service.plugs = order["plugs"]
        print("done", flush=True)


if __name__ == "__main__":
    import asyncio

    from google.protobuf import json_format as json_format

    from protos import launcher_pb2_grpc as launcher_pb2_grpc

    # Everything is imported: what is root's alone cannot be read in a user namespace, and threads cannot enter one.
    if int(sys.argv[3]):
        with proc.closing(os.open(f"/proc/{sys.argv[3]}/ns/user", os.O_RDONLY)) as users:
            proc.setns(users, 0x10000000)
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
