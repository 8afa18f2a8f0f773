"""`spec.configuration` of the KubeVirt object."""

from typing import Literal

from api.k8s.meta import Int32, Int64, Quantity, Struct, UInt32
from api.k8s.podspec import LabelSelector


class TokenBucketRateLimiter(Struct):
    """A token bucket."""

    burst: Int32
    """Requests at once."""
    qps: float
    """Requests per second."""


class RateLimiter(Struct):
    """Limit on requests."""

    tokenBucketRateLimiter: TokenBucketRateLimiter | None = None
    """By a token bucket."""


class RESTClientConfiguration(Struct):
    """A client of the API server."""

    rateLimiter: RateLimiter | None = None
    """Limit on requests."""


class ReloadableComponentConfiguration(Struct):
    """How a component talks to the API server."""

    restClient: RESTClientConfiguration | None = None
    """Its client."""


class ArchSpecificConfiguration(Struct):
    """Settings of an architecture."""

    emulatedMachines: list[str] | None = None
    """Machine types that may be used."""
    machineType: str | None = None
    """Machine type of guests that name none."""
    ovmfPath: str | None = None
    """Folder of the UEFI firmware."""


class ArchConfiguration(Struct):
    """Settings by architecture."""

    amd64: ArchSpecificConfiguration | None = None
    """x86, 64 bit."""
    arm64: ArchSpecificConfiguration | None = None
    """ARM, 64 bit."""
    defaultArchitecture: str | None = None
    """Architecture of guests that name none."""
    ppc64le: ArchSpecificConfiguration | None = None
    """POWER."""
    s390x: ArchSpecificConfiguration | None = None
    """IBM Z."""


class ChangedBlockTrackingSelectors(Struct):
    """VMs that changed blocks are kept account of for."""

    namespaceLabelSelector: LabelSelector | None = None
    """By namespace."""
    virtualMachineLabelSelector: LabelSelector | None = None
    """By VM."""


class CommonInstancetypesDeployment(Struct):
    """Predefined instancetypes."""

    enabled: bool | None = None
    """They are there."""


class TDXAttestationConfiguration(Struct):
    """How guests prove what they are."""

    enforced: bool | None = None
    """No guest runs without."""
    qgsSocketPath: str | None = None
    """Socket of the service that signs quotes."""


class TDXConfiguration(Struct):
    """Intel TDX."""

    attestation: TDXAttestationConfiguration | None = None
    """How guests prove what they are."""


class ConfidentialComputeConfiguration(Struct):
    """Encrypted guests."""

    tdx: TDXConfiguration | None = None
    """Intel TDX."""


class DiskVerification(Struct):
    """Limits of the check of disk images."""

    memoryLimit: Quantity
    """Memory that the check may use."""


class LogVerbosity(Struct):
    """How much components log."""

    nodeVerbosity: dict[str, Int32] | None = None
    """By node."""
    virtAPI: Int32 | None = None
    """Of the gateway."""
    virtController: Int32 | None = None
    """Of the controller."""
    virtHandler: Int32 | None = None
    """Of the handlers."""
    virtLauncher: Int32 | None = None
    """Of the launchers."""
    virtOperator: Int32 | None = None
    """Of the operator."""
    virtSynchronizationController: Int32 | None = None
    """Of the migration between clusters."""


class DeveloperConfiguration(Struct):
    """Settings for trying things."""

    clusterProfiler: bool | None = None
    """Profiles all components."""
    cpuAllocationRatio: UInt32 | None = None
    """Virtual CPUs per physical CPU in the pod's request; 10 when absent."""
    disabledFeatureGates: list[str] | None = None
    """Features to switch off."""
    diskVerification: DiskVerification | None = None
    """Limits of the check of disk images."""
    featureGates: list[str] | None = None
    """Features to switch on."""
    logVerbosity: LogVerbosity | None = None
    """How much components log."""
    memoryOvercommit: Int32 | None = None
    """Guest memory in percent of the pod's memory request; 100 when absent."""
    minimumClusterTSCFrequency: Int64 | None = None
    """Least frequency of the time stamp counter."""
    minimumReservePVCBytes: Int64 | None = None
    """Bytes that stay free on a volume."""
    nodeSelectors: dict[str, str] | None = None
    """Labels that the nodes of VMs must have."""
    pvcTolerateLessSpaceUpToPercent: Int32 | None = None
    """Percent by which a volume may be smaller than requested."""
    useEmulation: bool | None = None
    """Runs guests without KVM, in software, where KVM is not there or does not work."""


class HypervisorConfiguration(Struct):
    """A hypervisor that may be used."""

    name: str | None = None
    """Its name."""


class InstancetypeConfiguration(Struct):
    """How instancetypes are applied."""

    referencePolicy: str | None = None
    """reference keeps the reference, expand writes the values into the VM."""


class KSMConfiguration(Struct):
    """Nodes that share equal pages of memory."""

    nodeLabelSelector: LabelSelector | None = None
    """Their labels."""


class LiveUpdateConfiguration(Struct):
    """Limits for changes of running VMs."""

    maxCpuSockets: Int64 | None = None
    """Sockets up to which CPUs may be added."""
    maxGuest: Quantity | None = None
    """Maximum memory of a guest with memory hot-plug."""
    maxHotplugRatio: Int64 | None = None
    """Factor on what a VM starts with."""


class NodeMediatedDeviceTypesConfig(Struct):
    """Types of slices on some nodes."""

    nodeSelector: dict[str, str]
    """Labels of the nodes."""
    mediatedDeviceTypes: list[str] | None = None
    """Types of slices."""
    mediatedDevicesTypes: list[str] | None = None
    """Older name of mediatedDeviceTypes."""


class MediatedDevicesConfiguration(Struct):
    """Slices of devices that nodes make."""

    enabled: bool | None = None
    """They are created."""
    mediatedDeviceTypes: list[str] | None = None
    """Types of slices."""
    mediatedDevicesTypes: list[str] | None = None
    """Older name of mediatedDeviceTypes."""
    nodeMediatedDeviceTypes: list[NodeMediatedDeviceTypesConfig] | None = None
    """Types by node."""


class MigrationConfiguration(Struct):
    """Settings of migrations."""

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


class ResourceRequirementsWithoutClaims(Struct):
    """Resources of a container."""

    limits: dict[str, Quantity] | None = None
    """Greatest amounts."""
    requests: dict[str, Quantity] | None = None
    """Least amounts."""


class InterfaceBindingMigration(Struct):
    """How a plugin behaves in migrations."""

    method: str | None = None
    """Method, such as link-refresh."""


class InterfaceBindingPlugin(Struct):
    """A plugin by which interfaces join networks."""

    computeResourceOverhead: ResourceRequirementsWithoutClaims | None = None
    """Resources that it adds to the pod."""
    domainAttachmentType: str | None = None
    """What it attaches to the guest: a tap device or its own device."""
    downwardAPI: str | None = None
    """Device information passed to the plugin."""
    migration: InterfaceBindingMigration | None = None
    """How it behaves in migrations."""
    networkAttachmentDefinition: str | None = None
    """The CNI plugin that it needs."""
    sidecarImage: str | None = None
    """Container that it adds to the pod."""


class NetworkConfiguration(Struct):
    """Settings of networks."""

    binding: dict[str, InterfaceBindingPlugin] | None = None
    """Plugins by which interfaces join networks."""
    defaultNetworkInterface: str | None = None
    """How an interface that does not say joins the pod's network; masquerade when absent."""
    permitBridgeInterfaceOnPodNetwork: bool | None = None
    """A bridge may be used on the pod's network."""
    permitSlirpInterface: bool | None = None
    """No longer used."""


class MediatedHostDevice(Struct):
    """Slices of devices."""

    mdevNameSelector: str
    """Type of the slices."""
    resourceName: str
    """Resource under which they are offered."""
    externalResourceProvider: bool | None = None
    """Somebody else's device plugin offers them."""


class PciHostDevice(Struct):
    """PCI devices."""

    pciVendorSelector: str
    """vendor:device in hexadecimal."""
    resourceName: str
    """Resource under which they are offered."""
    externalResourceProvider: bool | None = None
    """Somebody else's device plugin offers them."""


class USBSelector(Struct):
    """A USB device."""

    product: str
    """Product number in hexadecimal."""
    vendor: str
    """Vendor number in hexadecimal."""


class USBHostDevice(Struct):
    """USB devices that belong together."""

    resourceName: str
    """Resource under which they are offered."""
    externalResourceProvider: bool | None = None
    """Somebody else's device plugin offers them."""
    selectors: list[USBSelector] | None = None
    """The devices."""


class PermittedHostDevices(Struct):
    """Host devices that may be passed through to guests."""

    mediatedDevices: list[MediatedHostDevice] | None = None
    """Slices of devices."""
    pciHostDevices: list[PciHostDevice] | None = None
    """PCI devices."""
    usb: list[USBHostDevice] | None = None
    """USB devices."""


class PersistentReservationConfiguration(Struct):
    """SCSI persistent reservations."""

    enabled: bool | None = None
    """They may be used."""


class CustomProfile(Struct):
    """A profile of system calls."""

    localhostProfile: str | None = None
    """File on the node."""
    runtimeDefaultProfile: bool | None = None
    """The container runtime's profile."""


class VirtualMachineInstanceProfile(Struct):
    """Profile of launchers."""

    customProfile: CustomProfile | None = None
    """A profile of your own."""


class SeccompConfiguration(Struct):
    """System calls that launchers may make."""

    virtualMachineInstanceProfile: VirtualMachineInstanceProfile | None = None
    """Profile of launchers."""


class SMBiosConfiguration(Struct):
    """SMBIOS strings of all guests."""

    family: str | None = None
    """Family."""
    manufacturer: str | None = None
    """Maker."""
    product: str | None = None
    """Product."""
    sku: str | None = None
    """Stock number."""
    version: str | None = None
    """Version."""


class SupportContainerResources(Struct):
    """Resources of helper containers."""

    resources: ResourceRequirementsWithoutClaims
    """The resources."""
    type: str
    """Which helper."""


class TLSConfiguration(Struct):
    """TLS of the installation's servers."""

    ciphers: list[str] | None = None
    """Ciphers that may be used."""
    minTLSVersion: str | None = None
    """Oldest version that may be used."""


class VirtTemplateDeployment(Struct):
    """Templates of virtual machines."""

    enabled: bool | None = None
    """They are there."""


class DisableFreePageReporting(Struct):
    """Disables free page reporting by guests."""


class DisableSerialConsoleLog(Struct):
    """Serial consoles are not written to the pods' logs."""


class VirtualMachineOptions(Struct):
    """Switches for all VMs."""

    disableFreePageReporting: DisableFreePageReporting | None = None
    """Disables free page reporting by guests."""
    disableSerialConsoleLog: DisableSerialConsoleLog | None = None
    """Serial consoles are not written to the pods' logs."""


class KubeVirtConfiguration(Struct):
    """Settings of virtual machines."""

    additionalGuestMemoryOverheadRatio: str | None = None
    """Factor on the overhead that is computed for a launcher pod."""
    apiConfiguration: ReloadableComponentConfiguration | None = None
    """How the gateway talks to the API server."""
    architectureConfiguration: ArchConfiguration | None = None
    """Settings by architecture."""
    autoCPULimitNamespaceLabelSelector: LabelSelector | None = None
    """Namespaces whose VMs get a CPU limit."""
    changedBlockTrackingLabelSelectors: ChangedBlockTrackingSelectors | None = None
    """VMs that changed blocks are kept account of for."""
    commonInstancetypesDeployment: CommonInstancetypesDeployment | None = None
    """Predefined instancetypes."""
    confidentialCompute: ConfidentialComputeConfiguration | None = None
    """Encrypted guests."""
    controllerConfiguration: ReloadableComponentConfiguration | None = None
    """How the controller talks to the API server."""
    cpuModel: str | None = None
    """CPU model of guests that name none."""
    cpuRequest: Quantity | None = None
    """Default CPU request of a launcher pod."""
    defaultRuntimeClass: str | None = None
    """Runtime class of launcher pods."""
    developerConfiguration: DeveloperConfiguration | None = None
    """Settings for trying things."""
    emulatedMachines: list[str] | None = None
    """Machine types that may be used."""
    evictionStrategy: Literal["None", "LiveMigrate", "LiveMigrateIfPossible", "External"] | None = None
    """What a drain does to VMs that do not say."""
    handlerConfiguration: ReloadableComponentConfiguration | None = None
    """How the handlers talk to the API server."""
    hypervisors: list[HypervisorConfiguration] | None = None
    """Hypervisors that may be used."""
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When container disks are pulled."""
    instancetype: InstancetypeConfiguration | None = None
    """How instancetypes are applied."""
    ksmConfiguration: KSMConfiguration | None = None
    """Nodes that share equal pages of memory."""
    liveUpdateConfiguration: LiveUpdateConfiguration | None = None
    """Limits for changes of running VMs."""
    machineType: str | None = None
    """Machine type of guests that name none."""
    mediatedDevicesConfiguration: MediatedDevicesConfiguration | None = None
    """Slices of devices that nodes make."""
    memBalloonStatsPeriod: Int64 | None = None
    """Seconds between reports of the memory balloon."""
    migrations: MigrationConfiguration | None = None
    """Settings of migrations."""
    minCPUModel: str | None = None
    """Least CPU model that nodes are labelled with."""
    network: NetworkConfiguration | None = None
    """Settings of networks."""
    obsoleteCPUModels: dict[str, bool] | None = None
    """CPU models that nodes are not labelled with."""
    ovmfPath: str | None = None
    """Folder of the UEFI firmware."""
    permittedHostDevices: PermittedHostDevices | None = None
    """Host devices that may be passed through to guests."""
    persistentReservationConfiguration: PersistentReservationConfiguration | None = None
    """SCSI persistent reservations."""
    roleAggregationStrategy: str | None = None
    """Whether users' roles are extended."""
    seccompConfiguration: SeccompConfiguration | None = None
    """System calls that launchers may make."""
    selinuxLauncherType: str | None = None
    """SELinux type of launchers."""
    smbios: SMBiosConfiguration | None = None
    """SMBIOS strings of all guests."""
    supportContainerResources: list[SupportContainerResources] | None = None
    """Resources of helper containers."""
    supportedGuestAgentVersions: list[str] | None = None
    """No longer used."""
    tlsConfiguration: TLSConfiguration | None = None
    """TLS of the installation's servers."""
    virtTemplateDeployment: VirtTemplateDeployment | None = None
    """Templates of virtual machines."""
    virtualMachineInstancesPerNode: UInt32 | None = None
    """Most VMs on one node."""
    virtualMachineOptions: VirtualMachineOptions | None = None
    """Switches for all VMs."""
    vmRolloutStrategy: Literal["Stage", "LiveUpdate"] | None = None
    """Whether changes of a VM reach its running VMI or wait for a restart."""
    vmStateStorageClass: str | None = None
    """Storage for firmware's and TPM's state."""
    webhookConfiguration: ReloadableComponentConfiguration | None = None
    """How the webhooks talk to the API server."""
