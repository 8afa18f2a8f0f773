"""What is reported of a VirtualMachineInstance."""

from typing import Literal

from api.k8s.meta import Condition, Int32, Int64, Quantity, Struct, Time
from api.kubevirt.domain import Machine
from api.kubevirt.migration_state import VirtualMachineInstanceMigrationState


class VirtualMachineInstanceBackupVolumeInfo(Struct):
    """A volume in a backup."""

    volumeName: str
    """Name of the volume."""


class VirtualMachineInstanceBackupStatus(Struct):
    """A backup."""

    backupMsg: str | None = None
    """What went wrong."""
    backupName: str | None = None
    """Name of the backup object."""
    checkpointName: str | None = None
    """Point that the next backup goes on from."""
    completed: bool | None = None
    """It has ended."""
    endTimestamp: Time | None = None
    """When it ended."""
    failed: bool | None = None
    """It has failed."""
    quiesceStatus: str | None = None
    """Whether the guest's file systems were frozen."""
    startTimestamp: Time | None = None
    """When it began."""
    volumes: list[VirtualMachineInstanceBackupVolumeInfo] | None = None
    """The volumes in it."""


class ChangedBlockTrackingStatus(Struct):
    """Whether changed blocks are kept account of."""

    state: str
    """How far it is switched on."""
    backupStatus: VirtualMachineInstanceBackupStatus | None = None
    """The backup under way."""


class VirtualMachineInstanceCondition(Condition):
    """One aspect of a VMI's state."""


class CPUTopology(Struct):
    """Number of CPUs."""

    cores: Int64 | None = None
    """Cores per socket."""
    sockets: Int64 | None = None
    """Sockets."""
    threads: Int64 | None = None
    """Threads per core."""


class VirtualMachineInstanceGuestOSInfo(Struct):
    """The guest's system."""

    id: str | None = None
    """Short name, such as debian."""
    kernelRelease: str | None = None
    """Release of the kernel."""
    kernelVersion: str | None = None
    """Version of the kernel."""
    machine: str | None = None
    """Architecture."""
    name: str | None = None
    """Name."""
    prettyName: str | None = None
    """Human-readable name and version."""
    version: str | None = None
    """Version."""
    versionId: str | None = None
    """Version as a number."""


class VirtualMachineInstanceNetworkInterface(Struct):
    """A network card as it is now."""

    infoSource: str | None = None
    """Source of the information: domain, guest-agent or both."""
    interfaceName: str | None = None
    """Name inside the guest."""
    ipAddress: str | None = None
    """First address."""
    ipAddresses: list[str] | None = None
    """All addresses."""
    linkState: str | None = None
    """up or down."""
    mac: str | None = None
    """MAC address."""
    name: str | None = None
    """Name of the network."""
    podInterfaceName: str | None = None
    """Name inside the pod."""
    queueCount: Int32 | None = None
    """Number of queues."""


class InitrdInfo(Struct):
    """Checksum of the initrd."""

    checksum: Int64 | None = None
    """CRC-32."""


class KernelInfo(Struct):
    """Checksum of the kernel."""

    checksum: Int64 | None = None
    """CRC-32."""


class KernelBootStatus(Struct):
    """Checksums of what was booted."""

    initrdInfo: InitrdInfo | None = None
    """Of the initrd."""
    kernelInfo: KernelInfo | None = None
    """Of the kernel."""


class MemoryStatus(Struct):
    """Memory that the guest has now."""

    guestAtBoot: Quantity | None = None
    """At the start."""
    guestCurrent: Quantity | None = None
    """Now."""
    guestRequested: Quantity | None = None
    """Asked for by the spec."""
    memoryOverhead: Quantity | None = None
    """Beyond the guest's own, for its pod."""


class PersistentVolumeClaimInfo(Struct):
    """A claim as it is now."""

    accessModes: list[str] | None = None
    """How nodes may use it at the same time."""
    capacity: dict[str, Quantity] | None = None
    """Its size."""
    claimName: str | None = None
    """Its name."""
    filesystemOverhead: str | None = None
    """Share of the size that the file system needs."""
    preallocated: bool | None = None
    """The space is preallocated."""
    requests: dict[str, Quantity] | None = None
    """Requested size."""
    volumeMode: Literal["Block", "Filesystem", "FromStorageProfile"] | None = None
    """Block or Filesystem."""


class StorageMigratedVolumeInfo(Struct):
    """A volume whose content is being moved."""

    volumeName: str
    """Name of the volume."""
    destinationPVCInfo: PersistentVolumeClaimInfo | None = None
    """Claim that is entered."""
    sourcePVCInfo: PersistentVolumeClaimInfo | None = None
    """Claim that is left."""


class VirtualMachineInstancePhaseTransitionTimestamp(Struct):
    """When a phase was reached."""

    phase: str | None = None
    """The phase."""
    phaseTransitionTimestamp: Time | None = None
    """The time."""


class TopologyHints(Struct):
    """What the node must have."""

    tscFrequency: Int64 | None = None
    """Frequency of the time stamp counter."""


class ContainerDiskInfo(Struct):
    """A disk out of a container image."""

    checksum: Int64 | None = None
    """CRC-32 of its content."""


class HotplugVolumeStatus(Struct):
    """A plugged-in volume."""

    attachPodName: str | None = None
    """Pod that holds it."""
    attachPodUID: str | None = None
    """Its UID."""


class DomainMemoryDumpInfo(Struct):
    """A dump of memory."""

    claimName: str | None = None
    """Claim that holds it."""
    endTimestamp: Time | None = None
    """When it ended."""
    startTimestamp: Time | None = None
    """When it began."""
    targetFileName: str | None = None
    """Name of the file."""


class VolumeStatus(Struct):
    """A volume as it is now."""

    name: str
    """Name of the volume."""
    target: str
    """Name of the disk inside the guest."""
    containerDiskVolume: ContainerDiskInfo | None = None
    """Checksum of the disk image."""
    hotplugVolume: HotplugVolumeStatus | None = None
    """Pod that holds a plugged-in volume."""
    memoryDumpVolume: DomainMemoryDumpInfo | None = None
    """Dump of memory that it holds."""
    message: str | None = None
    """What is the matter."""
    persistentVolumeClaimInfo: PersistentVolumeClaimInfo | None = None
    """Its claim."""
    phase: str | None = None
    """Phase of its life cycle."""
    reason: str | None = None
    """CamelCase reason of the phase."""
    size: Int64 | None = None
    """Bytes."""


class VirtualMachineInstanceStatus(Struct):
    """What there is of a VMI."""

    VSOCKCID: Int64 | None = None
    """Number of the guest in VSOCK."""
    activePods: dict[str, str] | None = None
    """UIDs of launcher pods, with their nodes."""
    changedBlockTracking: ChangedBlockTrackingStatus | None = None
    """Whether changed blocks are kept account of."""
    conditions: list[VirtualMachineInstanceCondition] | None = None
    """Conditions: Ready, Synchronized, Paused, AgentConnected, LiveMigratable and others."""
    currentCPUTopology: CPUTopology | None = None
    """CPUs that the guest has now."""
    evacuationNodeName: str | None = None
    """Node that the VMI is to be evacuated from."""
    fsFreezeStatus: str | None = None
    """frozen while file systems of the guest are."""
    guestOSInfo: VirtualMachineInstanceGuestOSInfo | None = None
    """The guest operating system, as reported by the guest agent."""
    interfaces: list[VirtualMachineInstanceNetworkInterface] | None = None
    """The guest's network cards and addresses."""
    kernelBootStatus: KernelBootStatus | None = None
    """Checksums of kernel and initrd."""
    launcherContainerImageVersion: str | None = None
    """Image of the launcher."""
    machine: Machine | None = None
    """The board in use."""
    memory: MemoryStatus | None = None
    """Memory that the guest has now."""
    migratedVolumes: list[StorageMigratedVolumeInfo] | None = None
    """Volumes whose content is being moved."""
    migrationMethod: str | None = None
    """BlockMigration moves disks too, LiveMigration shares them."""
    migrationState: VirtualMachineInstanceMigrationState | None = None
    """Progress of the latest migration."""
    migrationTransport: str | None = None
    """How memory gets to the target."""
    nodeName: str | None = None
    """Node that it runs on."""
    phase: str | None = None
    """Pending, Scheduling, Scheduled, Running, Succeeded, Failed or Unknown."""
    phaseTransitionTimestamps: list[VirtualMachineInstancePhaseTransitionTimestamp] | None = None
    """When each phase was reached."""
    qosClass: Literal["BestEffort", "Burstable", "Guaranteed"] | None = None
    """Quality of service of the pod."""
    reason: str | None = None
    """CamelCase reason of the failure."""
    runtimeUser: Int64 | None = None
    """User id that the launcher runs as."""
    selinuxContext: str | None = None
    """SELinux context of the launcher."""
    topologyHints: TopologyHints | None = None
    """What the node must have for the guest's clock."""
    virtualMachineRevisionName: str | None = None
    """ControllerRevision of the VM that it was created from."""
    volumeStatus: list[VolumeStatus] | None = None
    """The volumes and how they are attached."""
