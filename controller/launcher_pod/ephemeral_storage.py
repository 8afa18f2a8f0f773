"""What a launcher pod writes to its node's disk: the limit of its emptyDir, and what it asks the scheduler for.

All that a launcher writes lies in one emptyDir (docs/architecture.md, "The launcher pod"): logs, ISO images, empty
disks, and overlays of containerDisks. An overlay grows as its guest writes, to the size of a disk that only the node
learns, so a VM with one has no limit of its own: resources.limits["ephemeral-storage"] or a LimitRange gives it one.
"""

from api.k8s.meta import Quantity, quantity_bytes
from api.kubevirt.vmi import VirtualMachineInstanceSpec

MIB = 1 << 20
NAME = "ephemeral-storage"

BASE = 32 * MIB
"""libvirt's and QEMU's logs and state, each trimmed (launcher/supervisor/child_process.py); the copy of the last
Sync."""
SLACK = 96 * MIB
"""Beyond that in the limit: a guest that makes QEMU log all it can until the next trim must not be evicted for it."""
LOG = 16 * MIB
"""The container's log, which the kubelet rotates at 10 MiB: it counts as the pod's, but is not in the emptyDir."""
MEDIUM = 8 * MIB
"""One ISO image: a Secret or ConfigMap of 1 MiB, or two of them, with a sector for every file."""
OVERLAY = 64 * MIB
"""What a guest has written to its containerDisk once it has booted and settled."""


def size_limit(spec: VirtualMachineInstanceSpec) -> int | None:
    """Bytes that the emptyDir may hold; None where a guest decides."""
    return None if _overlays(spec) else BASE + SLACK + _media(spec) + _empty_disks(spec)


def request(spec: VirtualMachineInstanceSpec, asked: Quantity | None, limit: Quantity | None) -> int:
    """Bytes of ephemeral storage to request: what the spec asks for, else what its disks need, and the pod's own."""
    own = own_bytes(spec)
    if asked is not None:
        return quantity_bytes(asked) + own
    disks = _empty_disks(spec) + OVERLAY * _overlays(spec)
    return own + (disks if limit is None else min(disks, quantity_bytes(limit)))


def own_bytes(spec: VirtualMachineInstanceSpec) -> int:
    """Bytes beyond the disks, added to what the spec asks for and is limited to."""
    return BASE + LOG + _media(spec)


def _overlays(spec: VirtualMachineInstanceSpec) -> int:
    return sum(bool(volume.containerDisk or volume.ephemeral) for volume in spec.volumes or ())


def _media(spec: VirtualMachineInstanceSpec) -> int:
    sources = ("cloudInitNoCloud", "cloudInitConfigDrive", "configMap", "secret")
    return MEDIUM * sum(any(getattr(volume, name) for name in sources) for volume in spec.volumes or ())


def _empty_disks(spec: VirtualMachineInstanceSpec) -> int:
    capacities = [quantity_bytes(volume.emptyDisk.capacity) for volume in spec.volumes or () if volume.emptyDisk]
    # qcow2 in clusters of 64 KiB: 8 bytes of table and 2 of reference count for each, and its header.
    return sum(capacity + capacity // 4096 + 2 * MIB for capacity in capacities)
