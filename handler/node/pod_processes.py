"""Finding a pod's processes from outside, where no container runtime says which they are.

By the pod's cgroup, which nobody gets into but by the container runtime. A pod's network namespace is that of the
oldest one, the sandbox's: whatever network namespaces a container makes for itself, they come later. A process on its
way into a pod is in the pod's cgroup before it has left the host's network: such ones do not count.
"""

import os
import pathlib
from collections.abc import Iterator

from kit import proc

_PROC = pathlib.Path("/proc")
_START = 19
"""Place of the start time among the words of /proc/<pid>/stat that follow the command's name (proc(5), field 22)."""


def members(pod_uid: str) -> Iterator[proc.Process]:
    """The processes in a pod's cgroup, whoever they run as. Each is the caller's to close."""
    forms = (pod_uid.lower().encode(), pod_uid.lower().replace("-", "_").encode())
    with os.scandir(_PROC) as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        found = _member(pid, pod_uid, forms)
        if found is not None:
            yield found


def any_alive(pod_uid: str) -> bool:
    """Whether a process of a pod is left: its sandbox's counts, one that has ended and was not reaped does not."""
    alive = False
    for process in members(pod_uid):
        with process:
            alive = alive or process.alive or _has_living_thread(process.pid)
    return alive


def _has_living_thread(pid: int) -> bool:
    """A process whose first thread has ended looks like a zombie while the others run on, or still end their I/O."""
    for stat in (_PROC / str(pid) / "task").glob("*/stat"):
        try:
            if stat.read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X"):
                return True
        except (OSError, IndexError):
            continue
    return False


def _member(pid: int, pod_uid: str, forms: tuple[bytes, bytes]) -> proc.Process | None:
    try:
        # Most processes are nobody's: a look at one file says so.
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
    """The oldest process of a pod that is not in the host's network, or None. The caller closes it."""
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
    """When a living process outside of the host's network was started, in clock ticks; None for any other."""
    try:
        with proc.closing(process.namespace("net")) as namespace:
            if os.path.samestat(os.fstat(namespace), host):
                return None
        began = int(process.read("stat").rpartition(b")")[2].split()[_START])
        return began if process.alive else None
    except (OSError, ValueError, IndexError):
        return None
