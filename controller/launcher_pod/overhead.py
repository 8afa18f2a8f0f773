"""How much memory a launcher pod needs beyond its guest's: requested in addition, so that no VM is OOM-killed.

A sum of named parts, each measured by `python -m bench memory` (docs/benchmarks.md, "What a pod requests") and
rounded up. Measured as a whole, under software emulation: 98 MiB for a guest that halts in its first sector, 137 MiB
for a booted Linux.
"""

from api import defaults
from api.k8s.meta import quantity_bytes
from api.kubevirt.vmi import VirtualMachineInstanceSpec

MIB = 1 << 20

LAUNCHER = 56 * MIB
"""Supervisor, gRPC server and libvirtd: 49 alone on a node, and up to 5 more while a guest's agent talks."""
QEMU = 48 * MIB
"""QEMU itself without guest memory: code and device models, 46."""
TRANSLATION = 40 * MIB
"""Software emulation's code cache (32, `tb-cache` in the domain) and its bookkeeping: 39 once a Linux has booted."""
KERNEL = 4 * MIB
"""Page tables, sockets, stacks that the kernel charges to the pod: 3.6."""
RESERVE = 16 * MIB
"""What a guest at rest does not show: requests in flight, a viewer on its screen."""
PER_VCPU = 3 * MIB
"""Thread stack, vCPU state, per-CPU buffers: 0.6 at rest."""
PER_DISK = 4 * MIB
"""Block layer, virtio queues: 1. The rest is for qcow2's table cache, which grows with the image (1 MiB for 8 GiB)."""
PER_NIC = 1 * MIB
"""virtio queues and buffers: 0.8."""
GRAPHICS = 16 * MIB
"""Video memory, as much as the guest may touch: a text screen needs 2.6."""
PAGE_TABLE_DIVISOR = 512
"""8 bytes of page table for each page of 4 KiB."""


def guest_bytes(spec: VirtualMachineInstanceSpec) -> int:
    """The guest's memory in bytes; 0 when the spec names none (validation refuses that)."""
    amount = defaults.guest_memory(spec.domain)
    return quantity_bytes(amount) if amount is not None else 0


def overhead_bytes(spec: VirtualMachineInstanceSpec, *, emulated: bool, ratio: float = 1.0) -> int:
    """Bytes to request beyond the guest's memory, a multiple of 1 MiB.

    `emulated`: the pod may run without KVM. `ratio`: the KubeVirt CR's additionalGuestMemoryOverheadRatio.
    """
    devices = spec.domain.devices
    parts = [
        LAUNCHER,
        QEMU,
        KERNEL,
        RESERVE,
        TRANSLATION if emulated else 0,
        PER_VCPU * defaults.vcpus(spec),
        PER_DISK * len(devices.disks or ()),
        PER_NIC * len(devices.interfaces or ()),
        0 if devices.autoattachGraphicsDevice is False else GRAPHICS,
        guest_bytes(spec) // PAGE_TABLE_DIVISOR,
    ]
    memory = spec.domain.memory
    added = memory.reservedOverhead.addedOverhead if memory and memory.reservedOverhead else None
    total = int(sum(parts) * ratio) + (quantity_bytes(added) if added is not None else 0)
    return -(-total // MIB) * MIB
