"""Progress of a migration, in the status of the VMI and of the migration."""

from api.k8s.meta import Int32, Int64, Quantity, Struct, Time, UInt32


class DowntimeTuningOptions(Struct):
    """How the allowed downtime grows."""

    cooldownSeconds: Int32 | None = None
    """Seconds between steps."""
    initialMs: Int64 | None = None
    """First step, in milliseconds."""
    startAfterIteration: Int64 | None = None
    """Pass over the memory after which it begins to grow."""
    steps: Int32 | None = None
    """Number of steps."""


class StallDetectorOptions(Struct):
    """How it is noticed that a migration gets nowhere."""

    completionTimeoutFactor: Quantity | None = None
    """Factor on the time that completion may take."""
    ewmaAlpha: Quantity | None = None
    """Weight of the newest measurement in the average."""
    patienceWindowDecayFactor: Quantity | None = None
    """How fast patience wears off."""
    precopyPossibleFactor: Quantity | None = None
    """Factor that determines whether pre-copy can converge."""
    searchLocalMinima: bool | None = None
    """Looks for the moment with the least memory left."""
    stallMargin: Int64 | None = None
    """Change that still counts as none."""
    stallProgressTimeout: Int64 | None = None
    """Seconds without progress that count as stalled."""
    switchoverTimeout: Int64 | None = None
    """Seconds that the switch may take."""


class ExperimentalMigrationOptions(Struct):
    """Settings that may change."""

    compression: str | None = None
    """Method by which memory is packed."""
    downtimeTuning: DowntimeTuningOptions | None = None
    """How the allowed downtime grows."""
    stallDetector: StallDetectorOptions | None = None
    """How it is noticed that a migration gets nowhere."""


class VMIMConfigurationOptions(Struct):
    """Settings of one migration."""

    allowAutoConverge: bool | None = None
    """Throttles the guest when its memory changes too fast."""
    allowPostCopy: bool | None = None
    """Lets the guest run at the target before all memory is there."""
    allowWorkloadDisruption: bool | None = None
    """Pauses the guest when nothing else helps."""
    bandwidthPerMigration: Quantity | None = None
    """Bytes per second; 0 is as fast as it goes."""
    completionTimeoutPerGiB: Int64 | None = None
    """Seconds that each GiB of memory may take."""
    disableTLS: bool | None = None
    """Memory goes over the network unencrypted."""
    experimental: ExperimentalMigrationOptions | None = None
    """Settings that may change."""
    matchSELinuxLevelOnMigration: bool | None = None
    """The target's pod gets the source's SELinux level."""
    maxDowntimeMs: Int64 | None = None
    """Milliseconds that the guest may stand still at the end."""
    network: str | None = None
    """Secondary network that memory goes over."""
    nodeDrainTaintKey: str | None = None
    """Taint of a node that is being drained."""
    parallelMigrationsPerCluster: UInt32 | None = None
    """Migrations at the same time in the cluster; 5 when absent."""
    parallelOutboundMigrationsPerNode: UInt32 | None = None
    """Migrations at the same time away from one node; 2 when absent."""
    progressTimeout: Int64 | None = None
    """Seconds without progress after which it is given up."""
    unsafeMigrationOverride: bool | None = None
    """Migrates where storage could be damaged by it."""
    utilityVolumesTimeout: Int64 | None = None
    """Seconds that utility volumes may take to be let go."""


class VirtualMachineInstanceMigrationSourceState(Struct):
    """What the source of a migration reports."""

    domainName: str | None = None
    """Name of the guest in libvirt."""
    domainNamespace: str | None = None
    """Namespace of the VMI."""
    migrationUID: str | None = None
    """UID of the migration object."""
    node: str | None = None
    """The node."""
    nodeSelectors: dict[str, str] | None = None
    """Node labels required by the VMI."""
    persistentStatePVCName: str | None = None
    """Claim with the firmware's and TPM's state."""
    pod: str | None = None
    """The launcher pod."""
    selinuxContext: str | None = None
    """SELinux context of the launcher."""
    syncAddress: str | None = None
    """Address for a migration between clusters."""
    virtualMachineInstanceUID: str | None = None
    """UID of the VMI."""


class VirtualMachineInstanceMigrationTargetState(Struct):
    """What the target of a migration reports."""

    attachmentPodUID: str | None = None
    """Pod that holds plugged-in volumes."""
    cpuSet: list[Int32] | None = None
    """Physical CPUs that are set aside."""
    directMigrationNodePorts: dict[str, Int32] | None = None
    """Ports of the node, and what they lead to."""
    domainDetected: bool | None = None
    """The guest was seen."""
    domainName: str | None = None
    """Name of the guest in libvirt."""
    domainNamespace: str | None = None
    """Namespace of the VMI."""
    domainReadyTimestamp: Time | None = None
    """When the guest ran."""
    migrationUID: str | None = None
    """UID of the migration object."""
    node: str | None = None
    """The node."""
    nodeAddress: str | None = None
    """Its address."""
    nodeTopology: str | None = None
    """CPUs and NUMA nodes."""
    persistentStatePVCName: str | None = None
    """Claim with the firmware's and TPM's state."""
    pod: str | None = None
    """The launcher pod."""
    selinuxContext: str | None = None
    """SELinux context of the launcher."""
    syncAddress: str | None = None
    """Address for a migration between clusters."""
    virtualMachineInstanceUID: str | None = None
    """UID of the VMI."""


class VirtualMachineInstanceMigrationState(Struct):
    """Progress of a migration."""

    abortRequested: bool | None = None
    """It was called off."""
    abortStatus: str | None = None
    """Whether calling it off worked."""
    completed: bool | None = None
    """It has ended, well or not."""
    endTimestamp: Time | None = None
    """When it ended."""
    failed: bool | None = None
    """It has failed."""
    failureReason: str | None = None
    """Human-readable reason of the failure."""
    migrationConfiguration: VMIMConfigurationOptions | None = None
    """Settings in force."""
    migrationNetworkType: str | None = None
    """Network that the memory goes over: the pods' or one of its own."""
    migrationPolicyName: str | None = None
    """Policy that gave settings."""
    migrationUid: str | None = None
    """UID of the migration object."""
    mode: str | None = None
    """PreCopy, PostCopy or Paused."""
    sourceNode: str | None = None
    """Node that is left."""
    sourcePersistentStatePVCName: str | None = None
    """Claim with the firmware's and TPM's state at the source."""
    sourcePod: str | None = None
    """Launcher pod that is left."""
    sourceState: VirtualMachineInstanceMigrationSourceState | None = None
    """What the source reports."""
    startTimestamp: Time | None = None
    """When it began."""
    targetAttachmentPodUID: str | None = None
    """Pod that holds plugged-in volumes at the target."""
    targetCPUSet: list[Int32] | None = None
    """Physical CPUs that are set aside at the target."""
    targetDirectMigrationNodePorts: dict[str, Int32] | None = None
    """Ports of the target's node, and what they lead to."""
    targetMemoryOverhead: Quantity | None = None
    """Overhead of the target's pod."""
    targetNode: str | None = None
    """Node that is entered."""
    targetNodeAddress: str | None = None
    """Its address."""
    targetNodeDomainDetected: bool | None = None
    """The guest was seen at the target."""
    targetNodeDomainReadyTimestamp: Time | None = None
    """When the guest ran at the target."""
    targetNodeTopology: str | None = None
    """CPUs and NUMA nodes of the target."""
    targetPersistentStatePVCName: str | None = None
    """Claim with the firmware's and TPM's state at the target."""
    targetPod: str | None = None
    """Launcher pod that is entered."""
    targetState: VirtualMachineInstanceMigrationTargetState | None = None
    """What the target reports."""
