"""RLIMIT_MEMLOCK of a launcher's processes: VFIO pins all guest memory.

libvirt sets QEMU's limit when it starts it (qemuDomainGetMemLockLimitBytes: the domain's memory plus 1 GiB for the
devices), but an unprivileged libvirt cannot exceed its own. So the limit is raised for every process of the launcher in
the pod: a running QEMU, libvirt's daemon, and the supervisor, which restarts that daemon.
Sources: setrlimit(2), prlimit(2), the kernel's vfio_lock_acct.
"""

import errno
import re
import resource
from collections.abc import Callable

from api import defaults, names
from api.errors import NetworkError
from api.k8s.meta import quantity_bytes
from api.kubevirt.vmi import VirtualMachineInstance
from handler.node import pod_processes
from kit import proc

MIB, GIB = 1 << 20, 1 << 30
_PASSES = 8
"""Processes forked during a pass have the old limit: repeat until a pass finds none."""
_LOCKED = re.compile(rb"^Max locked memory +(\d+|unlimited) +(\d+|unlimited) ", re.MULTILINE)

Limits = tuple[int, int]
"""Soft and hard limit in bytes; `resource.RLIM_INFINITY`: unlimited."""
Set = Callable[[int, Limits], object]
"""Sets the limits of the process with a PID. Raises OSError."""


def wanted(vmi: VirtualMachineInstance) -> int:
    """Bytes that a guest with a VFIO device locks; libvirt rounds guest memory up to MiB. Raises NetworkError."""
    memory = defaults.guest_memory(vmi.spec.domain)
    if memory is None:
        raise NetworkError("spec.domain.memory.guest: required by the sriov binding, which locks all guest memory")
    return -(-quantity_bytes(memory) // MIB) * MIB + GIB


def raised(limits: Limits, amount: int) -> Limits | None:
    """Limits that allow `amount` bytes; None if `limits` do already. Higher limits are kept."""
    soft, hard = (_at_least(limit, amount) for limit in limits)
    return None if (soft, hard) == limits else (soft, hard)


def _at_least(limit: int, amount: int) -> int:
    return limit if limit == resource.RLIM_INFINITY else max(limit, amount)


def limits_of(process: proc.Process) -> Limits:
    """RLIMIT_MEMLOCK of a process. Raises OSError.

    Read from /proc: prlimit(2) needs CAP_SYS_RESOURCE even to read the limits of another user's process.
    """
    text = process.read("limits")
    found = _LOCKED.search(text)
    if found is None:
        # Empty for a process that is being reaped.
        raise OSError(errno.EIO if text else errno.ESRCH, "its limits cannot be read")
    soft, hard = (resource.RLIM_INFINITY if word == b"unlimited" else int(word) for word in found.groups())
    return soft, hard


def _prlimit(pid: int, limits: Limits) -> object:
    return resource.prlimit(pid, resource.RLIMIT_MEMLOCK, limits)


def allow(
    pod_uid: str, interface: str, amount: int, user: int = names.LAUNCHER_UID, set_limits: Set = _prlimit
) -> list[int]:
    """Allow a pod's launcher to lock `amount` bytes, for the VMI's `interface`. Returns the PIDs that were changed.

    Affects only processes in the pod's cgroup whose IDs are all `user`. Raises NetworkError.
    """
    changed: list[int] = []
    for _ in range(_PASSES):
        found = _raise_once(pod_uid, interface, amount, user, set_limits)
        changed += found
        if not found:
            return changed
    raise NetworkError(
        f"interface {interface}: the launcher forks faster than RLIMIT_MEMLOCK of its processes can be raised"
    )


def _raise_once(pod_uid: str, interface: str, amount: int, user: int, set_limits: Set) -> list[int]:
    changed = []
    for process in pod_processes.members(pod_uid):
        with process:
            try:
                limits = raised(limits_of(process), amount) if process.users == {user} else None
                # Still alive: the PID was not reused since it was checked.
                if limits is None or not process.alive:
                    continue
                set_limits(process.pid, limits)
            except (ProcessLookupError, FileNotFoundError):
                continue  # exited meanwhile
            except OSError as error:
                raise NetworkError(_message(interface, process.pid, amount, error)) from error
            changed.append(process.pid)
    return changed


def _message(interface: str, pid: int, amount: int, error: OSError) -> str:
    what = f"interface {interface}: cannot raise RLIMIT_MEMLOCK of launcher process {pid} to {amount // MIB} MiB"
    if error.errno == errno.EPERM:
        return (
            f"{what}, which the sriov binding needs: the handler lacks CAP_SYS_RESOURCE; run its container privileged, "
            "as in the manifests"
        )
    return f"{what}: {error.strerror or error}"
