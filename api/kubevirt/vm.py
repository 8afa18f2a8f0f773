"""VirtualMachine: a machine that is kept, started and stopped."""

from typing import Literal

from api import names
from api.k8s.meta import Condition, Int32, Int64, Object, ObjectMeta, Struct, Time
from api.k8s.resource import Resource
from api.kubevirt.datavolume import DataVolumeSpec
from api.kubevirt.devices import Disk
from api.kubevirt.vmi import VirtualMachineInstanceTemplateSpec
from api.kubevirt.vmi_status import ChangedBlockTrackingStatus, StorageMigratedVolumeInfo
from api.kubevirt.volumes import HotplugVolumeSource


class DataVolumeTemplateDummyStatus(Struct):
    """Not used."""


class DataVolumeTemplateSpec(Struct):
    """A DataVolume that is created with the VM."""

    spec: DataVolumeSpec
    """Source of the content."""
    apiVersion: str | None = None
    """Accepted and ignored."""
    kind: str | None = None
    """Accepted and ignored."""
    metadata: ObjectMeta | None = None
    """Its name and labels."""
    status: DataVolumeTemplateDummyStatus | None = None
    """Not used."""


class InstancetypeMatcher(Struct):
    """Reference to an instancetype."""

    kind: str | None = None
    """Kind of the referenced object, namespaced or cluster-wide."""
    inferFromVolume: str | None = None
    """Volume from whose labels the instancetype is inferred."""
    inferFromVolumeFailurePolicy: Literal["Reject", "Ignore"] | None = None
    """Whether to refuse the VM when inference fails."""
    name: str | None = None
    """Name of the instancetype."""
    revisionName: str | None = None
    """ControllerRevision with the stored instancetype."""


class PreferenceMatcher(Struct):
    """Reference to a preference."""

    kind: str | None = None
    """Kind of the referenced object, namespaced or cluster-wide."""
    inferFromVolume: str | None = None
    """Volume from whose labels the preference is inferred."""
    inferFromVolumeFailurePolicy: Literal["Reject", "Ignore"] | None = None
    """Whether to refuse the VM when inference fails."""
    name: str | None = None
    """Name of the preference."""
    revisionName: str | None = None
    """ControllerRevision with the stored preference."""


class VirtualMachineSpec(Struct):
    """The VM template and run strategy."""

    # KubeVirt's schema requires it. Here validation does, so that kubectl does not stop at this one fault of many.
    template: VirtualMachineInstanceTemplateSpec = VirtualMachineInstanceTemplateSpec()
    """Template of the VMI; required."""
    dataVolumeTemplates: list[DataVolumeTemplateSpec] | None = None
    """DataVolumes that are created and deleted with the VM."""
    instancetype: InstancetypeMatcher | None = None
    """The instancetype that provides CPU and memory."""
    preference: PreferenceMatcher | None = None
    """The preference for devices."""
    runStrategy: Literal["Always", "Halted", "Manual", "RerunOnFailure", "Once", "WaitAsReceiver"] | None = None
    """Always restarts, RerunOnFailure restarts on failure, Once runs once, Manual acts on requests, Halted is off."""
    running: bool | None = None
    """Deprecated: use runStrategy. True is Always, false is Halted. Mutually exclusive with runStrategy."""
    updateVolumesStrategy: Literal["Migration", "Replacement"] | None = None
    """Whether a changed volume replaces the old one or is migrated to."""


class VirtualMachineCondition(Condition):
    """A condition of a VM."""


class ControllerRevisionRef(Struct):
    """Reference to a ControllerRevision."""

    name: str | None = None
    """Its name."""


class InstancetypeStatusRef(Struct):
    """An instancetype or preference in use."""

    kind: str | None = None
    """Kind of the referenced object, namespaced or cluster-wide."""
    controllerRevisionRef: ControllerRevisionRef | None = None
    """ControllerRevision that keeps it as it was."""
    inferFromVolume: str | None = None
    """Volume that named it."""
    inferFromVolumeFailurePolicy: str | None = None
    """What happens when the volume names none."""
    name: str | None = None
    """Its name."""


class VirtualMachineMemoryDumpRequest(Struct):
    """A dump of the guest's memory."""

    claimName: str
    """Claim that takes it."""
    phase: str
    """Phase of its life cycle."""
    endTimestamp: Time | None = None
    """End time."""
    fileName: str | None = None
    """Name of the file."""
    message: str | None = None
    """Error message."""
    remove: bool | None = None
    """The claim is to be removed."""
    startTimestamp: Time | None = None
    """Start time."""


class VirtualMachineStartFailure(Struct):
    """Starts that failed in a row."""

    consecutiveFailCount: Int32 | None = None
    """How many."""
    lastFailedVMIUID: str | None = None
    """UID of the last VMI that failed."""
    retryAfterTimestamp: Time | None = None
    """When the next start is due."""


class VirtualMachineStateChangeRequest(Struct):
    """A requested start or stop."""

    action: str
    """Start or Stop."""
    data: dict[str, str] | None = None
    """Parameters."""
    uid: str | None = None
    """UID of the VMI to stop."""


class AddVolumeOptions(Struct):
    """A disk to plug in."""

    disk: Disk
    """The disk."""
    name: str
    """Name of disk and volume."""
    volumeSource: HotplugVolumeSource
    """Its content."""
    dryRun: list[str] | None = None
    """Only check, do nothing."""


class RemoveVolumeOptions(Struct):
    """A disk to unplug."""

    name: str
    """Name of disk and volume."""
    dryRun: list[str] | None = None
    """Only check, do nothing."""


class VirtualMachineVolumeRequest(Struct):
    """A volume to be plugged in or out."""

    addVolumeOptions: AddVolumeOptions | None = None
    """In."""
    removeVolumeOptions: RemoveVolumeOptions | None = None
    """Out."""


class VolumeSnapshotStatus(Struct):
    """Whether a volume can be part of a snapshot."""

    enabled: bool
    """It can."""
    name: str
    """Name of the volume."""
    reason: str | None = None
    """Why not."""


class VolumeMigrationState(Struct):
    """Volumes being migrated."""

    migratedVolumes: list[StorageMigratedVolumeInfo] | None = None
    """The volumes, with the claims they leave and enter."""


class VolumeUpdateState(Struct):
    """Volumes that change."""

    volumeMigrationState: VolumeMigrationState | None = None
    """Volumes being migrated."""


class VirtualMachineStatus(Struct):
    """Observed state of a VM."""

    changedBlockTracking: ChangedBlockTrackingStatus | None = None
    """Changed block tracking state."""
    conditions: list[VirtualMachineCondition] | None = None
    """Conditions: Ready, Failure, Paused and RestartRequired."""
    created: bool | None = None
    """The VMI exists."""
    desiredGeneration: Int64 | None = None
    """Last observed generation."""
    instancetypeRef: InstancetypeStatusRef | None = None
    """The instancetype in use."""
    memoryDumpRequest: VirtualMachineMemoryDumpRequest | None = None
    """A requested memory dump."""
    observedGeneration: Int64 | None = None
    """Generation of the spec that the VMI was created from."""
    preferenceRef: InstancetypeStatusRef | None = None
    """The preference in use."""
    printableStatus: str | None = None
    """Human-readable status, shown by kubectl."""
    ready: bool | None = None
    """The VMI is running and ready."""
    restoreInProgress: str | None = None
    """Restore in progress."""
    runStrategy: str | None = None
    """Effective run strategy."""
    snapshotInProgress: str | None = None
    """Snapshot in progress."""
    startFailure: VirtualMachineStartFailure | None = None
    """Consecutive start failures and time of the next attempt."""
    stateChangeRequests: list[VirtualMachineStateChangeRequest] | None = None
    """Pending start and stop requests."""
    volumeRequests: list[VirtualMachineVolumeRequest] | None = None
    """Pending hot-plug requests."""
    volumeSnapshotStatuses: list[VolumeSnapshotStatus] | None = None
    """Which volumes can be part of a snapshot."""
    volumeUpdateState: VolumeUpdateState | None = None
    """Volumes being migrated."""


class VirtualMachine(Object):
    """A virtual machine that can be started and stopped. While it runs, a VirtualMachineInstance has the same name."""

    RESOURCE = Resource(names.GROUP, names.VERSION, names.KIND_VM, names.PLURAL_VM)

    apiVersion: Literal["kubevirt.io/v1", "kubevirt.io/v1alpha3"]
    """API group and version."""
    kind: Literal["VirtualMachine"]
    """Kind of the object."""
    spec: VirtualMachineSpec
    """Desired state: the VM template and run strategy."""
    status: VirtualMachineStatus | None = None
    """Observed state. Written by hyperlet only."""
