"""How much memory a launcher's processes may lock: VFIO pins all of a guest's, for the device to reach it.

libvirt sets QEMU's limit before it starts it (qemuDomainGetMemLockLimitBytes: the domain's memory and a GiB more for
the devices' own), and an unprivileged one can only have it lower than its own. So all of the pod's processes that are
the launcher's get as much: QEMU, where it runs already, libvirt's daemon, and the supervisor, which starts a new daemon
when that one dies. Sources: setrlimit(2), prlimit(2), the kernel's vfio_lock_acct.
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
"""Children of a process whose turn was still to come have the old limit: a pass that finds none is the last."""
_LOCKED = re.compile(rb"^Max locked memory +(\d+|unlimited) +(\d+|unlimited) ", re.MULTILINE)

Limits = tuple[int, int]
"""Soft and hard, bytes; `resource.RLIM_INFINITY` is no limit."""
Set = Callable[[int, Limits], object]
"""Sets the limits of a process, by its pid. Raises OSError."""


def wanted(vmi: VirtualMachineInstance) -> int:
    """Bytes that a guest with a VFIO device may lock; libvirt has guest memory in whole MiB. Raises NetworkError."""
    memory = defaults.guest_memory(vmi.spec.domain)
    if memory is None:
        raise NetworkError("spec.domain.memory.guest: required by the sriov binding, which locks all guest memory")
    return -(-quantity_bytes(memory) // MIB) * MIB + GIB


def raised(limits: Limits, amount: int) -> Limits | None:
    """The limits that allow so much; None for those that do. What is higher stays."""
    soft, hard = (_at_least(limit, amount) for limit in limits)
    return None if (soft, hard) == limits else (soft, hard)


def _at_least(limit: int, amount: int) -> int:
    return limit if limit == resource.RLIM_INFINITY else max(limit, amount)


def limits_of(process: proc.Process) -> Limits:
    """What a process may lock now. Raises OSError.

    From its /proc directory: prlimit(2) wants CAP_SYS_RESOURCE for a look at another user's process, too.
    """
    text = process.read("limits")
    found = _LOCKED.search(text)
    if found is None:
        # The kernel has none to tell of a process that is just being reaped.
        raise OSError(errno.EIO if text else errno.ESRCH, "its limits cannot be read")
    soft, hard = (resource.RLIM_INFINITY if word == b"unlimited" else int(word) for word in found.groups())
    return soft, hard


def _prlimit(pid: int, limits: Limits) -> object:
    return resource.prlimit(pid, resource.RLIMIT_MEMLOCK, limits)


def allow(
    pod_uid: str, interface: str, amount: int, user: int = names.LAUNCHER_UID, set_limits: Set = _prlimit
) -> list[int]:
    """Lets the launcher of a pod lock so much, for the VMI's `interface`; the pids that got a new limit.

    Only processes in the pod's cgroup that are this user's alone. Raises NetworkError.
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
                # The pid is still that of the process that was looked at: it is alive.
                if limits is None or not process.alive:
                    continue
                set_limits(process.pid, limits)
            except (ProcessLookupError, FileNotFoundError):
                continue  # it has ended meanwhile
            except OSError as error:
                raise NetworkError(_message(interface, process.pid, amount, error)) from error
            changed.append(process.pid)
    return changed


def _message(interface: str, pid: int, amount: int, error: OSError) -> str:
    what = (
        f"interface {interface}: cannot raise RLIMIT_MEMLOCK of launcher process {pid} to {amount // MIB} MiB"
    )
    if error.errno == errno.EPERM:
        return (
            f"{what}, which the sriov binding needs: the handler lacks CAP_SYS_RESOURCE; run its container privileged, "
            "as in the manifests"
        )
    return f"{what}: {error.strerror or error}"
