"""Finding a pod's network namespace from outside, where no container runtime says which it is.

By a process in the pod's cgroup, which nobody gets into but by the container runtime. The oldest one is the sandbox's:
whatever network namespaces a container makes for itself, they come later. A process on its way into a pod is in the
pod's cgroup before it has left the host's network: such ones do not count.
"""

import os
import pathlib

from kit import proc

_PROC = pathlib.Path("/proc")
_START = 19
"""Place of the start time among the words of /proc/<pid>/stat that follow the command's name (proc(5), field 22)."""


def sandbox(pod_uid: str, host: str = "/proc/1/ns/net") -> proc.Process | None:
    """The oldest process of a pod that is not in the host's network, or None. The caller closes it."""
    forms = (pod_uid.lower().encode(), pod_uid.lower().replace("-", "_").encode())
    ours = pathlib.Path(host).stat()
    oldest: tuple[int, proc.Process] | None = None
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit():
            continue
        found = _member(int(entry.name), pod_uid, forms, ours)
        if found is None:
            continue
        if oldest is None or found[0] < oldest[0]:
            oldest, found = found, oldest
        if found is not None:
            found[1].close()
    return oldest[1] if oldest else None


def _member(
    pid: int, pod_uid: str, forms: tuple[bytes, bytes], host: os.stat_result
) -> tuple[int, proc.Process] | None:
    try:
        # Most processes are nobody's: a look at one file says so.
        groups = (_PROC / str(pid) / "cgroup").read_bytes().lower()
        if not any(form in groups for form in forms):
            return None
        process = proc.Process(pid)
    except OSError:
        return None
    try:
        owner = proc.pod_of_cgroups(process.read("cgroup").decode("utf-8", "replace"))
        with proc.closing(process.namespace("net")) as namespace:
            elsewhere = not os.path.samestat(os.fstat(namespace), host)
        began = int(process.read("stat").rpartition(b")")[2].split()[_START])
        if owner == pod_uid.lower() and elsewhere and process.alive:
            return began, process
    except (OSError, ValueError, IndexError):
        pass
    process.close()
    return None
