"""Progress of a migration, in the status of the VMI and of the migration."""

from api.k8s.meta import Int32, Int64, Quantity, Struct, Time, UInt32


class DowntimeTuningOptions(Struct):
    """How the allowed downtime grows."""

    cooldownSeconds: Int32 | None = None
    """Seconds between steps."""
    initialMs: Int64 | None = None
    """First step, in milliseconds."""
    startAfterIteration: Int64 | None = None
    """Iteration after which it begins to grow."""
    steps: Int32 | None = None
    """Number of steps."""


class StallDetectorOptions(Struct):
    """Detection of stalled migrations."""

    completionTimeoutFactor: Quantity | None = None
    """Factor on the time that completion may take."""
    ewmaAlpha: Quantity | None = None
    """Weight of the newest measurement in the average."""
    patienceWindowDecayFactor: Quantity | None = None
    """Decay factor of the patience window."""
    precopyPossibleFactor: Quantity | None = None
    """Factor that determines whether pre-copy can converge."""
    searchLocalMinima: bool | None = None
    """Switches over at a local minimum of remaining memory."""
    stallMargin: Int64 | None = None
    """Margin below which progress counts as stalled."""
    stallProgressTimeout: Int64 | None = None
    """Seconds without progress that count as stalled."""
    switchoverTimeout: Int64 | None = None
    """Timeout of the switchover in seconds."""


class ExperimentalMigrationOptions(Struct):
    """Experimental settings."""

    compression: str | None = None
    """Compression method."""
    downtimeTuning: DowntimeTuningOptions | None = None
    """How the allowed downtime grows."""
    stallDetector: StallDetectorOptions | None = None
    """Detection of stalled migrations."""


class MigrationConfiguration(Struct):
    """Settings of migrations."""

    allowAutoConverge: bool | None = None
    """Throttles the guest when its memory changes too fast."""
    allowPostCopy: bool | None = None
    """Allows post-copy migration."""
    allowWorkloadDisruption: bool | None = None
    """Allows pausing the guest when the migration does not converge."""
    bandwidthPerMigration: Quantity | None = None
    """Bandwidth limit in bytes per second; 0 is unlimited."""
    completionTimeoutPerGiB: Int64 | None = None
    """Timeout in seconds per GiB of memory."""
    disableTLS: bool | None = None
    """Transfers memory without TLS."""
    matchSELinuxLevelOnMigration: bool | None = None
    """Whether the target pod gets the source pod's SELinux level."""
    maxDowntimeMs: Int64 | None = None
    """Maximum downtime in milliseconds."""
    network: str | None = None
    """Secondary network for the transfer."""
    nodeDrainTaintKey: str | None = None
    """Taint of a node that is being drained."""
    parallelMigrationsPerCluster: UInt32 | None = None
    """Maximum number of concurrent migrations in the cluster; 5 when absent."""
    parallelOutboundMigrationsPerNode: UInt32 | None = None
    """Maximum number of concurrent outbound migrations per node; 2 when absent."""
    progressTimeout: Int64 | None = None
    """Seconds without progress after which the migration is aborted."""
    unsafeMigrationOverride: bool | None = None
    """Allows migrations that may corrupt storage."""
    utilityVolumesTimeout: Int64 | None = None
    """Seconds to wait for detachment of utility volumes."""


class VMIMConfigurationOptions(MigrationConfiguration):
    """Settings of one migration."""

    experimental: ExperimentalMigrationOptions | None = None
    """Experimental settings."""


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
    """Attachment pod of hot-plugged volumes."""
    cpuSet: list[Int32] | None = None
    """Dedicated CPUs."""
    directMigrationNodePorts: dict[str, Int32] | None = None
    """Migration ports of the node and their destinations."""
    domainDetected: bool | None = None
    """The domain was detected."""
    domainName: str | None = None
    """Name of the guest in libvirt."""
    domainNamespace: str | None = None
    """Namespace of the VMI."""
    domainReadyTimestamp: Time | None = None
    """When the domain was running."""
    migrationUID: str | None = None
    """UID of the migration object."""
    node: str | None = None
    """The node."""
    nodeAddress: str | None = None
    """The address."""
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
    """Cancellation was requested."""
    abortStatus: str | None = None
    """Status of the cancellation."""
    completed: bool | None = None
    """The migration has finished, successfully or not."""
    endTimestamp: Time | None = None
    """End time."""
    failed: bool | None = None
    """Failed."""
    failureReason: str | None = None
    """Human-readable reason of the failure."""
    migrationConfiguration: VMIMConfigurationOptions | None = None
    """Effective settings."""
    migrationNetworkType: str | None = None
    """Network of the transfer: the pod network or a dedicated one."""
    migrationPolicyName: str | None = None
    """Applied migration policy."""
    migrationUid: str | None = None
    """UID of the migration object."""
    mode: str | None = None
    """PreCopy, PostCopy or Paused."""
    sourceNode: str | None = None
    """Source node."""
    sourcePersistentStatePVCName: str | None = None
    """Claim with the firmware's and TPM's state at the source."""
    sourcePod: str | None = None
    """Source launcher pod."""
    sourceState: VirtualMachineInstanceMigrationSourceState | None = None
    """What the source reports."""
    startTimestamp: Time | None = None
    """Start time."""
    targetAttachmentPodUID: str | None = None
    """Attachment pod of hot-plugged volumes at the target."""
    targetCPUSet: list[Int32] | None = None
    """Dedicated CPUs at the target."""
    targetDirectMigrationNodePorts: dict[str, Int32] | None = None
    """Migration ports of the target node and their destinations."""
    targetMemoryOverhead: Quantity | None = None
    """Overhead of the target's pod."""
    targetNode: str | None = None
    """Target node."""
    targetNodeAddress: str | None = None
    """The address."""
    targetNodeDomainDetected: bool | None = None
    """The domain was detected at the target."""
    targetNodeDomainReadyTimestamp: Time | None = None
    """When the domain was running at the target."""
    targetNodeTopology: str | None = None
    """CPUs and NUMA nodes of the target."""
    targetPersistentStatePVCName: str | None = None
    """Claim with the firmware's and TPM's state at the target."""
    targetPod: str | None = None
    """Target launcher pod."""
    targetState: VirtualMachineInstanceMigrationTargetState | None = None
    """What the target reports."""
