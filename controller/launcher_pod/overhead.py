"""Memory overhead of a launcher pod, requested in addition to guest memory so that no VM is OOM-killed. Pure.

A sum of named parts, each measured by `python -m bench memory` (docs/benchmarks.md, "What a pod requests") and
rounded up. Measured in total, under software emulation: 98 MiB for a guest that halts in its boot sector, 137 MiB for
a booted Linux.
"""

from api import defaults
from api.k8s.meta import quantity_bytes
from api.kubevirt.vmi import VirtualMachineInstanceSpec

MIB = 1 << 20

LAUNCHER = 56 * MIB
"""Supervisor, gRPC server and libvirtd: 49 MiB if alone on a node, up to 5 more while the guest agent is active."""
QEMU = 48 * MIB
"""QEMU without guest memory: code and device models, 46 MiB."""
TRANSLATION = 40 * MIB
"""TCG translation cache (32 MiB, `tb-cache` in the domain XML) and its metadata: 39 MiB once a Linux has booted."""
KERNEL = 4 * MIB
"""Kernel memory charged to the pod: page tables, sockets, stacks. 3.6 MiB."""
RESERVE = 16 * MIB
"""Reserve for load that an idle guest does not cause: I/O in flight, VNC clients."""
PER_VCPU = 3 * MIB
"""Thread stack, vCPU state, per-CPU buffers: 0.6 MiB when idle."""
PER_DISK = 4 * MIB
"""Block layer and virtio queues: 1 MiB. The rest is for qcow2's L2 cache, 1 MiB for each 8 GiB of the image."""
PER_NIC = 1 * MIB
"""virtio queues and buffers: 0.8 MiB."""
GRAPHICS = 16 * MIB
"""All of the video memory that the guest can use; a text screen uses 2.6 MiB."""
PAGE_TABLE_DIVISOR = 512
"""8 bytes of page table for each 4 KiB page."""


def guest_bytes(spec: VirtualMachineInstanceSpec) -> int:
    """The guest's memory in bytes; 0 if the spec sets none (which validation refuses)."""
    amount = defaults.guest_memory(spec.domain)
    return quantity_bytes(amount) if amount is not None else 0


def overhead_bytes(spec: VirtualMachineInstanceSpec, *, emulated: bool, ratio: float = 1.0) -> int:
    """Memory to request in addition to the guest's, in bytes, rounded up to MiB.

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
