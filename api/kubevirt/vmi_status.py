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
    """Error message."""
    backupName: str | None = None
    """Name of the backup object."""
    checkpointName: str | None = None
    """Checkpoint for the next incremental backup."""
    completed: bool | None = None
    """Finished."""
    endTimestamp: Time | None = None
    """End time."""
    failed: bool | None = None
    """Failed."""
    quiesceStatus: str | None = None
    """Whether the guest's file systems were frozen."""
    startTimestamp: Time | None = None
    """Start time."""
    volumes: list[VirtualMachineInstanceBackupVolumeInfo] | None = None
    """The volumes in it."""


class ChangedBlockTrackingStatus(Struct):
    """Changed block tracking state."""

    state: str
    """State of changed block tracking."""
    backupStatus: VirtualMachineInstanceBackupStatus | None = None
    """The backup in progress."""


class VirtualMachineInstanceCondition(Condition):
    """A condition of a VMI."""


class CPUTopology(Struct):
    """Number of CPUs."""

    cores: Int64 | None = None
    """Cores per socket."""
    sockets: Int64 | None = None
    """Sockets."""
    threads: Int64 | None = None
    """Threads per core."""


class VirtualMachineInstanceGuestOSInfo(Struct):
    """The guest operating system."""

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
    """Status of a network interface."""

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
    """Current guest memory."""

    guestAtBoot: Quantity | None = None
    """At the start."""
    guestCurrent: Quantity | None = None
    """Now."""
    guestRequested: Quantity | None = None
    """Requested in the spec."""
    memoryOverhead: Quantity | None = None
    """Memory overhead of the pod."""


class PersistentVolumeClaimInfo(Struct):
    """Status of a claim."""

    accessModes: list[str] | None = None
    """Access modes."""
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
    """A volume being migrated."""

    volumeName: str
    """Name of the volume."""
    destinationPVCInfo: PersistentVolumeClaimInfo | None = None
    """Destination claim."""
    sourcePVCInfo: PersistentVolumeClaimInfo | None = None
    """Source claim."""


class VirtualMachineInstancePhaseTransitionTimestamp(Struct):
    """When a phase was reached."""

    phase: str | None = None
    """The phase."""
    phaseTransitionTimestamp: Time | None = None
    """The time."""


class TopologyHints(Struct):
    """Scheduling hints."""

    tscFrequency: Int64 | None = None
    """Frequency of the time stamp counter."""


class ContainerDiskInfo(Struct):
    """A container disk."""

    checksum: Int64 | None = None
    """CRC-32 of its content."""


class HotplugVolumeStatus(Struct):
    """A hot-plugged volume."""

    attachPodName: str | None = None
    """Attachment pod."""
    attachPodUID: str | None = None
    """UID of the attachment pod."""


class DomainMemoryDumpInfo(Struct):
    """A dump of memory."""

    claimName: str | None = None
    """Claim with the dump."""
    endTimestamp: Time | None = None
    """End time."""
    startTimestamp: Time | None = None
    """Start time."""
    targetFileName: str | None = None
    """Name of the file."""


class VolumeStatus(Struct):
    """Status of a volume."""

    name: str
    """Name of the volume."""
    target: str
    """Name of the disk inside the guest."""
    containerDiskVolume: ContainerDiskInfo | None = None
    """Checksum of the disk image."""
    hotplugVolume: HotplugVolumeStatus | None = None
    """Attachment pod of a hot-plugged volume."""
    memoryDumpVolume: DomainMemoryDumpInfo | None = None
    """Memory dump on the volume."""
    message: str | None = None
    """Human-readable message."""
    persistentVolumeClaimInfo: PersistentVolumeClaimInfo | None = None
    """Its claim."""
    phase: str | None = None
    """Phase of its life cycle."""
    reason: str | None = None
    """CamelCase reason of the phase."""
    size: Int64 | None = None
    """Bytes."""


class VirtualMachineInstanceStatus(Struct):
    """Observed state of a VMI."""

    VSOCKCID: Int64 | None = None
    """VSOCK context ID of the guest."""
    activePods: dict[str, str] | None = None
    """UIDs of launcher pods, with their nodes."""
    changedBlockTracking: ChangedBlockTrackingStatus | None = None
    """Changed block tracking state."""
    conditions: list[VirtualMachineInstanceCondition] | None = None
    """Conditions: Ready, Synchronized, Paused, AgentConnected, LiveMigratable and others."""
    currentCPUTopology: CPUTopology | None = None
    """Current CPU topology."""
    evacuationNodeName: str | None = None
    """Node that the VMI is to be evacuated from."""
    fsFreezeStatus: str | None = None
    """frozen while the guest's file systems are frozen."""
    guestOSInfo: VirtualMachineInstanceGuestOSInfo | None = None
    """The guest operating system, as reported by the guest agent."""
    interfaces: list[VirtualMachineInstanceNetworkInterface] | None = None
    """Network interfaces of the guest and their addresses."""
    kernelBootStatus: KernelBootStatus | None = None
    """Checksums of kernel and initrd."""
    launcherContainerImageVersion: str | None = None
    """Image of the launcher."""
    machine: Machine | None = None
    """The machine type in use."""
    memory: MemoryStatus | None = None
    """Current guest memory."""
    migratedVolumes: list[StorageMigratedVolumeInfo] | None = None
    """Volumes being migrated."""
    migrationMethod: str | None = None
    """BlockMigration copies disks; LiveMigration requires shared storage."""
    migrationState: VirtualMachineInstanceMigrationState | None = None
    """Progress of the latest migration."""
    migrationTransport: str | None = None
    """Transport of the migration."""
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
    """Scheduling hints for the guest's clock."""
    virtualMachineRevisionName: str | None = None
    """ControllerRevision of the VM that it was created from."""
    volumeStatus: list[VolumeStatus] | None = None
    """The volumes and how they are attached."""
