"""The virtual machine as hardware: CPU, memory, machine, and the parts of `domain` in a VMI's spec."""

from typing import Literal

from api.k8s.meta import Quantity, Struct, UInt32
from api.kubevirt.devices import Devices
from api.kubevirt.platform import Clock, Features, Firmware


class Chassis(Struct):
    """SMBIOS strings about the case."""

    asset: str | None = None
    """Asset tag."""
    manufacturer: str | None = None
    """Maker."""
    serial: str | None = None
    """Serial number."""
    sku: str | None = None
    """Stock number."""
    version: str | None = None
    """Version."""


class CPUFeature(Struct):
    """A CPU feature that differs from the CPU model."""

    name: str
    """Name of the feature as libvirt spells it, such as pcid."""
    policy: Literal["force", "require", "optional", "disable", "forbid"] | None = None
    """force, require (when absent), optional, disable or forbid."""


class NUMAGuestMappingPassthrough(Struct):
    """Exposes the host's NUMA topology to the guest."""


class NUMA(Struct):
    """Layout of memory over NUMA nodes."""

    guestMappingPassthrough: NUMAGuestMappingPassthrough | None = None
    """Shows the guest the layout of the host's nodes that it runs on."""


class Realtime(Struct):
    """Real-time scheduling of virtual CPUs."""

    mask: str | None = None
    """Which virtual CPUs, such as 0-3,^1; all when absent."""


class CPU(Struct):
    """Virtual CPUs. Their number is sockets times cores times threads."""

    cores: UInt32 | None = None
    """Cores per socket; 1 when absent."""
    dedicatedCpuPlacement: bool | None = None
    """Gives every virtual CPU a physical one of its own."""
    features: list[CPUFeature] | None = None
    """CPU features to force, require or forbid."""
    isolateEmulatorThread: bool | None = None
    """With dedicated CPUs: one more CPU for the QEMU emulator thread."""
    maxSockets: UInt32 | None = None
    """Sockets up to which CPUs may be added while the guest runs."""
    model: str | None = None
    """CPU model: a name known to libvirt, host-model or host-passthrough; the installation's default when absent."""
    numa: NUMA | None = None
    """How the guest's memory is laid out over NUMA nodes."""
    realtime: Realtime | None = None
    """Schedules the virtual CPUs in real time."""
    sockets: UInt32 | None = None
    """Sockets; 1 when absent, or as many as resources name whole CPUs when no topology is given at all."""
    threads: UInt32 | None = None
    """Threads per core; 1 when absent."""


class DiskIOThreads(Struct):
    """Extra threads for disk requests."""

    supplementalPoolThreadCount: UInt32 | None = None
    """Number of threads in the pool."""


class SEVAttestation(Struct):
    """The owner measures the guest before it starts."""


class SEVPolicy(Struct):
    """What SEV must guarantee."""

    encryptedState: bool | None = None
    """CPU registers are encrypted too (SEV-ES)."""


class SEV(Struct):
    """AMD Secure Encrypted Virtualization."""

    attestation: SEVAttestation | None = None
    """Waits for the owner to measure the guest before it starts."""
    dhCert: str | None = None
    """The owner's Diffie-Hellman key, base64."""
    policy: SEVPolicy | None = None
    """What the platform must guarantee."""
    session: str | None = None
    """Session data of the owner, base64."""


class SEVSNP(Struct):
    """AMD SEV-SNP with its default policy."""


class TDX(Struct):
    """Intel Trust Domain Extensions."""


class LaunchSecurity(Struct):
    """Encryption of the guest's memory against the host."""

    sev: SEV | None = None
    """AMD SEV."""
    snp: SEVSNP | None = None
    """AMD SEV-SNP."""
    tdx: TDX | None = None
    """Intel TDX."""


class Machine(Struct):
    """The board that is emulated."""

    type: str | None = None
    """q35, or one of its versions such as pc-q35-9.2; the installation's default when absent."""


class Hugepages(Struct):
    """Huge pages behind the guest's memory."""

    pageSize: str | None = None
    """Size of one page, such as 2Mi or 1Gi."""


class ReservedOverhead(Struct):
    """Memory that is set aside beyond the guest's own."""

    addedOverhead: Quantity | None = None
    """Amount added to what is computed."""
    memLock: Literal["Required", "NotRequired"] | None = None
    """Whether the guest's memory must be locked."""


class Memory(Struct):
    """The guest's memory."""

    guest: Quantity | None = None
    """Memory that the guest sees; what resources ask for when absent."""
    hugepages: Hugepages | None = None
    """Backs the memory with huge pages."""
    maxGuest: Quantity | None = None
    """Memory up to which the guest may grow while it runs."""
    reservedOverhead: ReservedOverhead | None = None
    """Memory reserved in addition to guest memory."""


class ResourceRequirements(Struct):
    """Resources of the launcher pod."""

    limits: dict[str, Quantity] | None = None
    """Greatest amounts of cpu and memory."""
    overcommitGuestOverhead: bool | None = None
    """Leaves the overhead out of the request: more VMs fit, and may be killed when memory is short."""
    requests: dict[str, Quantity] | None = None
    """Requested cpu and memory; memory defaults to guest memory plus overhead."""


class DomainSpec(Struct):
    """The machine that the guest sees: its CPUs, memory, firmware and devices."""

    devices: Devices
    """Disks, network cards and everything else that is plugged in."""
    chassis: Chassis | None = None
    """SMBIOS strings about the case: maker, version, serial and asset numbers."""
    clock: Clock | None = None
    """What the guest's clock shows, and by which timers it ticks."""
    cpu: CPU | None = None
    """Number, model and features of the virtual CPUs."""
    features: Features | None = None
    """Hypervisor features that are switched on or off, such as ACPI or the Hyper-V ones."""
    firmware: Firmware | None = None
    """Firmware: BIOS or EFI, direct kernel boot, UUID and serial."""
    ioThreads: DiskIOThreads | None = None
    """Extra threads for disk requests."""
    ioThreadsPolicy: Literal["shared", "auto", "supplementalPool"] | None = None
    """How disks share I/O threads: one for all, one each, or a pool of extra ones."""
    launchSecurity: LaunchSecurity | None = None
    """Encryption of the guest's memory against the host."""
    machine: Machine | None = None
    """The board that is emulated."""
    memory: Memory | None = None
    """How much memory the guest sees and how it is backed."""
    rebootPolicy: Literal["Reboot", "Terminate"] | None = None
    """Whether a reboot from inside restarts the guest in place or ends the VMI."""
    resources: ResourceRequirements | None = None
    """CPU and memory of the launcher pod."""
