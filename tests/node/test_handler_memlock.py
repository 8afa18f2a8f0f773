"""Limits on locked memory of real processes in a pod's cgroup."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from api.errors import NetworkError
from handler.devices import memlock
from handler.node import pod_processes
from kit import proc
from tests.node import podlab

pytestmark = pytest.mark.node

UID = "8b4a9c1e-0000-4000-8000-00000000beef"
LOW, ENOUGH = 64 << 10, 1 << 20
"""As far as any machine's own limits allow: raising those takes CAP_SYS_RESOURCE."""
ROOT = os.getuid()


class PodProcesses:
    """Processes in a pod's cgroup, or out of it."""

    def __init__(self) -> None:
        self.cgroup = podlab.Cgroup(UID)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, user: int = ROOT, inside: bool = True) -> int:
        """A process that may lock 64 KiB, and could allow itself more."""
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        started = subprocess.Popen(["sleep", "600"], user=user)
        self.processes.append(started)
        if user == ROOT:
            resource.prlimit(started.pid, resource.RLIMIT_MEMLOCK, (LOW, hard))
        if inside:
            self.cgroup.add(started.pid)
        return started.pid

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.cgroup.close()


@pytest.fixture
def pod():
    made = PodProcesses()
    yield made
    made.close()


def soft(pid: int) -> int:
    with proc.Process(pid) as process:
        return memlock.limits_of(process)[0]


def locked_memory_limit() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_limit_is_raised_for_launcher_processes_only(pod):
    ours = {pod.start(), pod.start()}
    theirs, outside = pod.start(user=107), pod.start(inside=False)
    before, open_before = soft(theirs), locked_memory_limit()
    assert set(memlock.allow(UID, "fast", ENOUGH, user=ROOT)) == ours
    assert {soft(pid) for pid in ours} == {ENOUGH}
    assert (soft(theirs), soft(outside)) == (before, LOW)
    assert memlock.allow(UID, "fast", ENOUGH, user=ROOT) == []
    assert memlock.allow(UID, "fast", ENOUGH // 2, user=ROOT) == [], "a limit was lowered"
    assert locked_memory_limit() == open_before


def test_process_started_meanwhile_gets_limit(pod):
    pod.start()
    born = []

    def set_limits(pid, limits):
        if not born:
            born.append(pod.start())
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, limits)

    assert set(memlock.allow(UID, "fast", ENOUGH, ROOT, set_limits)) == {each.pid for each in pod.processes}
    assert soft(born[0]) == ENOUGH


def test_process_ending_meanwhile_is_ignored(pod):
    doomed, other = pod.start(), pod.start()

    def set_limits(pid, limits):
        if pid == doomed:
            pod.processes[0].kill()
            pod.processes[0].wait()
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, limits)

    assert memlock.allow(UID, "fast", ENOUGH, ROOT, set_limits) == [other]


def test_pod_with_endless_new_processes_is_refused(pod):
    pod.start()
    with pytest.raises(NetworkError, match="interface fast: the launcher forks faster"):
        memlock.allow(UID, "fast", ENOUGH, ROOT, lambda pid, limits: None)


def test_dead_launcher_is_ignored():
    assert memlock.allow(UID, "fast", ENOUGH) == []


ALLOW = """
import sys
from api.errors import NetworkError
from handler.devices import memlock
try:
    memlock.allow(sys.argv[1], "fast", 64 << 40, user=int(sys.argv[2]))
except NetworkError as error:
    print(error.message)
"""


def test_missing_right_to_raise_limits_is_reported(pod):
    """Runs in a process without the capability."""
    pid = pod.start(user=107)
    resources = "-sys_resource"
    told = subprocess.run(
        ["setpriv", f"--inh-caps={resources}", f"--bounding-set={resources}", sys.executable, "-c", ALLOW, UID, "107"],
        cwd=podlab.REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert told == (
        f"interface fast: cannot raise RLIMIT_MEMLOCK of launcher process {pid} to {64 << 20} MiB, which the sriov "
        "binding needs: the handler lacks CAP_SYS_RESOURCE; run its container privileged, as in the manifests\n"
    )


def test_other_failures_are_reported_unchanged(pod):
    pid = pod.start()

    def set_limits(pid, limits):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with pytest.raises(NetworkError, match=rf"launcher process {pid} .*: Cannot allocate memory"):
        memlock.allow(UID, "fast", ENOUGH, ROOT, set_limits)


def test_members_exclude_processes_of_other_pods(pod):
    inside = {pod.start(), pod.start(user=107)}
    pod.start(inside=False)
    found = list(pod_processes.members(UID.upper()))
    for process in found:
        process.close()
    assert {process.pid for process in found} == inside
    assert not list(pod_processes.members(UID[:-1] + "0"))
