"""The virtual machine as hardware: CPU, memory, machine, and the parts of `domain` in a VMI's spec."""

from typing import Literal

from api.k8s.meta import Quantity, Struct, UInt32
from api.kubevirt.devices import Devices
from api.kubevirt.platform import Clock, Features, Firmware


class Chassis(Struct):
    """SMBIOS chassis strings."""

    asset: str | None = None
    """Asset tag."""
    manufacturer: str | None = None
    """Manufacturer."""
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
    """NUMA settings."""

    guestMappingPassthrough: NUMAGuestMappingPassthrough | None = None
    """Exposes the host's NUMA topology to the guest."""


class Realtime(Struct):
    """Real-time scheduling of virtual CPUs."""

    mask: str | None = None
    """Which virtual CPUs, such as 0-3,^1; all when absent."""


class CPU(Struct):
    """Virtual CPUs. Their number is sockets times cores times threads."""

    cores: UInt32 | None = None
    """Cores per socket; 1 when absent."""
    dedicatedCpuPlacement: bool | None = None
    """Pins every vCPU to a dedicated physical CPU."""
    features: list[CPUFeature] | None = None
    """CPU features to force, require or forbid."""
    isolateEmulatorThread: bool | None = None
    """With dedicated CPUs: one more CPU for the QEMU emulator thread."""
    maxSockets: UInt32 | None = None
    """Maximum number of sockets with CPU hot-plug."""
    model: str | None = None
    """CPU model: a name known to libvirt, host-model or host-passthrough; the installation's default when absent."""
    numa: NUMA | None = None
    """NUMA settings of the guest."""
    realtime: Realtime | None = None
    """Real-time scheduling of vCPUs."""
    sockets: UInt32 | None = None
    """Sockets; 1 when absent, or the CPUs of resources when no topology is set."""
    threads: UInt32 | None = None
    """Threads per core; 1 when absent."""


class DiskIOThreads(Struct):
    """Supplemental I/O threads."""

    supplementalPoolThreadCount: UInt32 | None = None
    """Number of threads in the pool."""


class SEVAttestation(Struct):
    """Attestation before the guest starts."""


class SEVPolicy(Struct):
    """SEV policy."""

    encryptedState: bool | None = None
    """Encrypts CPU registers (SEV-ES)."""


class SEV(Struct):
    """AMD Secure Encrypted Virtualization."""

    attestation: SEVAttestation | None = None
    """Waits for attestation before the guest starts."""
    dhCert: str | None = None
    """The owner's Diffie-Hellman key, base64."""
    policy: SEVPolicy | None = None
    """SEV policy."""
    session: str | None = None
    """Session data of the owner, base64."""


class SEVSNP(Struct):
    """AMD SEV-SNP with its default policy."""


class TDX(Struct):
    """Intel Trust Domain Extensions."""


class LaunchSecurity(Struct):
    """Memory encryption of confidential guests."""

    sev: SEV | None = None
    """AMD SEV."""
    snp: SEVSNP | None = None
    """AMD SEV-SNP."""
    tdx: TDX | None = None
    """Intel TDX."""


class Machine(Struct):
    """The machine type."""

    type: str | None = None
    """q35, or one of its versions such as pc-q35-9.2; the installation's default when absent."""


class Hugepages(Struct):
    """Huge pages behind the guest's memory."""

    pageSize: str | None = None
    """Size of one page, such as 2Mi or 1Gi."""


class ReservedOverhead(Struct):
    """Memory reserved in addition to guest memory."""

    addedOverhead: Quantity | None = None
    """Amount added to the computed overhead."""
    memLock: Literal["Required", "NotRequired"] | None = None
    """Whether the guest's memory must be locked."""


class Memory(Struct):
    """The guest's memory."""

    guest: Quantity | None = None
    """Memory of the guest; defaults to the memory of resources."""
    hugepages: Hugepages | None = None
    """Backs the memory with huge pages."""
    maxGuest: Quantity | None = None
    """Maximum memory with memory hot-plug."""
    reservedOverhead: ReservedOverhead | None = None
    """Memory reserved in addition to guest memory."""


class ResourceRequirements(Struct):
    """Resources of the launcher pod."""

    limits: dict[str, Quantity] | None = None
    """Limits of cpu and memory."""
    overcommitGuestOverhead: bool | None = None
    """Excludes the overhead from the memory request, at the risk of OOM kills."""
    requests: dict[str, Quantity] | None = None
    """Requested cpu and memory; memory defaults to guest memory plus overhead."""


class DomainSpec(Struct):
    """The domain of the guest: CPUs, memory, firmware and devices."""

    devices: Devices
    """Disks, network interfaces and other devices."""
    chassis: Chassis | None = None
    """SMBIOS chassis strings: manufacturer, version, serial and asset tag."""
    clock: Clock | None = None
    """Clock and timers of the guest."""
    cpu: CPU | None = None
    """Number, model and features of the virtual CPUs."""
    features: Features | None = None
    """Hypervisor features, such as ACPI and Hyper-V enlightenments."""
    firmware: Firmware | None = None
    """Firmware: BIOS or EFI, direct kernel boot, UUID and serial."""
    ioThreads: DiskIOThreads | None = None
    """Supplemental I/O threads."""
    ioThreadsPolicy: Literal["shared", "auto", "supplementalPool"] | None = None
    """I/O thread policy of disks: shared, auto or supplementalPool."""
    launchSecurity: LaunchSecurity | None = None
    """Memory encryption of confidential guests."""
    machine: Machine | None = None
    """The machine type."""
    memory: Memory | None = None
    """Size and backing of guest memory."""
    rebootPolicy: Literal["Reboot", "Terminate"] | None = None
    """Whether a guest reboot restarts the guest in place or terminates the VMI."""
    resources: ResourceRequirements | None = None
    """CPU and memory of the launcher pod."""
