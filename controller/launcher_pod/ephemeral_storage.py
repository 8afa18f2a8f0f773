"""Ephemeral storage of a launcher pod: size limit of its emptyDir, and the request. Pure.

A launcher writes to one emptyDir only (docs/architecture.md, "The launcher pod"): logs, ISO images, empty disks, and
overlays of containerDisks. An overlay grows up to the size of its disk, which only the node learns, so a VM with
overlays has no default limit: set resources.limits["ephemeral-storage"] or a LimitRange.
"""

from api.k8s.meta import Quantity, quantity_bytes
from api.kubevirt.vmi import VirtualMachineInstanceSpec

MIB = 1 << 20
NAME = "ephemeral-storage"

BASE = 32 * MIB
"""Logs and state of libvirt and QEMU, each truncated (launcher/supervisor/child_process.py), and the last Sync's
copy."""
SLACK = 96 * MIB
"""Added to the limit: a guest that makes QEMU log at full speed until the next truncation must not be evicted."""
LOG = 16 * MIB
"""The container log, rotated by the kubelet at 10 MiB: it counts towards the pod's usage, outside of the emptyDir."""
MEDIUM = 8 * MIB
"""One ISO image: one or two Secrets or ConfigMaps of up to 1 MiB, each file padded to a sector."""
OVERLAY = 64 * MIB
"""Typical overlay size of a guest that has booted and is idle."""


def size_limit(spec: VirtualMachineInstanceSpec) -> int | None:
    """sizeLimit of the emptyDir in bytes; None if the VM has overlays."""
    return None if _overlays(spec) else BASE + SLACK + _media(spec) + _empty_disks(spec)


def request(spec: VirtualMachineInstanceSpec, asked: Quantity | None, limit: Quantity | None) -> int:
    """Bytes of ephemeral storage to request: the spec's request (`asked`) or what its disks need, plus `own_bytes`."""
    own = own_bytes(spec)
    if asked is not None:
        return quantity_bytes(asked) + own
    disks = _empty_disks(spec) + OVERLAY * _overlays(spec)
    return own + (disks if limit is None else min(disks, quantity_bytes(limit)))


def own_bytes(spec: VirtualMachineInstanceSpec) -> int:
    """Bytes for everything but disks, added to the spec's request and limit."""
    return BASE + LOG + _media(spec)


def _overlays(spec: VirtualMachineInstanceSpec) -> int:
    return sum(bool(volume.containerDisk or volume.ephemeral) for volume in spec.volumes or ())


def _media(spec: VirtualMachineInstanceSpec) -> int:
    sources = ("cloudInitNoCloud", "cloudInitConfigDrive", "configMap", "secret")
    return MEDIUM * sum(any(getattr(volume, name) for name in sources) for volume in spec.volumes or ())


def _empty_disks(spec: VirtualMachineInstanceSpec) -> int:
    capacities = [quantity_bytes(volume.emptyDisk.capacity) for volume in spec.volumes or () if volume.emptyDisk]
    # qcow2 with 64 KiB clusters: 8 bytes of L2 table and 2 of refcount for each cluster, plus the header.
    return sum(capacity + capacity // 4096 + 2 * MIB for capacity in capacities)
