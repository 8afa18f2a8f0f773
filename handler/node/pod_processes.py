"""Finds a pod's processes without the container runtime.

A process belongs to a pod by its cgroup, which only the container runtime assigns. The pod's network namespace is that
of its oldest process outside the host's namespace, the sandbox: namespaces that a container creates are younger. A
process being started enters the pod's cgroup before it leaves the host's network namespace; such processes are skipped.
"""

import os
import pathlib
from collections.abc import Iterator

from kit import proc

_PROC = pathlib.Path("/proc")
_START = 19
"""Index of the start time after the command name in /proc/<pid>/stat (proc(5), field 22)."""


def members(pod_uid: str) -> Iterator[proc.Process]:
    """The processes in a pod's cgroup, of any user. The caller must close each."""
    forms = (pod_uid.lower().encode(), pod_uid.lower().replace("-", "_").encode())
    with os.scandir(_PROC) as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        found = _member(pid, pod_uid, forms)
        if found is not None:
            yield found


def any_alive(pod_uid: str) -> bool:
    """Whether a pod has a living process, including its sandbox; zombies do not count."""
    alive = False
    for process in members(pod_uid):
        with process:
            alive = alive or process.alive or _has_living_thread(process.pid)
    return alive


def _has_living_thread(pid: int) -> bool:
    """A process looks like a zombie when its main thread has ended, while other threads run or complete I/O."""
    for stat in (_PROC / str(pid) / "task").glob("*/stat"):
        try:
            if stat.read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X"):
                return True
        except (OSError, IndexError):
            continue
    return False


def _member(pid: int, pod_uid: str, forms: tuple[bytes, bytes]) -> proc.Process | None:
    try:
        # Most processes belong to no pod: one read rules them out.
        groups = (_PROC / str(pid) / "cgroup").read_bytes().lower()
        if not any(form in groups for form in forms):
            return None
        process = proc.Process(pid)
    except OSError:
        return None
    try:
        if proc.pod_of_cgroups(process.read("cgroup").decode("utf-8", "replace")) == pod_uid.lower():
            return process
    except OSError:
        pass
    process.close()
    return None


def sandbox(pod_uid: str, host: str = "/proc/1/ns/net") -> proc.Process | None:
    """The oldest process of a pod outside the host's network namespace, or None. The caller closes it."""
    ours = pathlib.Path(host).stat()
    oldest: tuple[int, proc.Process] | None = None
    for process in members(pod_uid):
        began = _began(process, ours)
        if began is None or (oldest is not None and oldest[0] <= began):
            process.close()
            continue
        if oldest is not None:
            oldest[1].close()
        oldest = began, process
    return oldest[1] if oldest else None


def _began(process: proc.Process, host: os.stat_result) -> int | None:
    """Start time in clock ticks of a living process outside the host's network namespace; None for any other."""
    try:
        with proc.closing(process.namespace("net")) as namespace:
            if os.path.samestat(os.fstat(namespace), host):
                return None
        began = int(process.read("stat").rpartition(b")")[2].split()[_START])
        return began if process.alive else None
    except (OSError, ValueError, IndexError):
        return None
