"""The processes of a pod, seen (and killed) from the machine that the cluster's nodes run on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.support import EXISTING, Json, container_statuses
from tests.waiting import wait_for


@dataclass(frozen=True)
class Process:
    """One process: its pid here, its pid in its own namespace, its name and command line, and /proc/PID/status."""

    pid: int
    inner: int
    name: str
    command: str
    status: dict[str, str]

    @property
    def is_supervisor(self) -> bool:
        return self.inner == 1

    @property
    def is_qemu(self) -> bool:
        return self.name.startswith("qemu-system")

    @property
    def is_libvirt(self) -> bool:
        return self.name in ("libvirtd", "virtqemud")

    @property
    def is_server(self) -> bool:
        """The launcher's gRPC server: the supervisor's Python child."""
        return not self.is_supervisor and "python" in self.command.split("\0")[0]

    def outside(self, identity: int, table: str = "uid_map") -> int:
        """The host's id for a user (or group: `gid_map`) of the process's user namespace."""
        for line in (Path("/proc") / str(self.pid) / table).read_text().splitlines():
            first, there, count = map(int, line.split())
            if first <= identity < first + count:
                return there + identity - first
        raise AssertionError(f"{self.name}: {identity} is not in its {table}")

    def is_alive(self) -> bool:
        """Whether this process (not another with its pid) still runs."""
        return _read(self.pid) == self

    def kill(self) -> None:
        """Send SIGKILL to this process, never to another that reused its pid."""
        handle = os.pidfd_open(self.pid)
        try:
            assert self.is_alive(), f"{self.name} ended before it could be killed"
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _read(pid: int) -> Process | None:
    folder = Path("/proc") / str(pid)
    try:
        pairs = (line.partition(":") for line in (folder / "status").read_text().splitlines())
        status = {key: value.strip() for key, _, value in pairs}
        inner = int(status["NSpid"].split()[-1])
        # Only fields that do not change, so that two reads of one process are equal.
        kept = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        return Process(
            pid, inner, status["Name"], (folder / "cmdline").read_text(), {key: status.get(key, "") for key in kept}
        )
    except (OSError, KeyError, ValueError):
        return None


def processes(pod: Json, container: str = "") -> list[Process]:
    """Every process in a pod's containers (of one container, if named), found by its cgroup. Needs root."""
    if EXISTING:
        pytest.skip("needs nodes of its own")
    uid = pod["metadata"]["uid"]
    ids = {c["name"]: c.get("containerID", "").rpartition("/")[2] for c in container_statuses(pod)}
    wanted = [ids[container]] if container else [each for each in ids.values() if each]
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            groups = (entry / "cgroup").read_text()
        except OSError:
            continue
        if (uid in groups or uid.replace("-", "_") in groups) and any(each in groups for each in wanted):
            process = _read(int(entry.name))
            if process is not None and process.command:
                found.append(process)
    return sorted(found, key=lambda process: process.inner)


def wait_for_process(pod: Json, which: Callable[[Process], bool]) -> Process:
    """The first process of a pod that matches; waits until there is one."""

    def one() -> Process | None:
        matching = [process for process in processes(pod) if which(process)]
        return matching[0] if matching else None

    return wait_for(
        one, f"the process is there: {[p.command.replace(chr(0), ' ') for p in processes(pod)]}", seconds=20
    )


def wait_for_replacement(pod: Json, old: Process, which: Callable[[Process], bool]) -> Process:
    """Wait until another matching process has replaced a killed one."""

    def other() -> Process | None:
        return next((p for p in processes(pod) if which(p) and p.pid != old.pid), None)

    return wait_for(other, f"something replaces {old.name} ({old.pid})", seconds=30)
