"""`spec.configuration` of the KubeVirt object."""

from typing import Literal

from api.k8s.meta import Int32, Int64, Quantity, Struct, UInt32
from api.k8s.podspec import LabelSelector
from api.kubevirt.migration_state import MigrationConfiguration


class TokenBucketRateLimiter(Struct):
    """A token bucket."""

    burst: Int32
    """Burst size in requests."""
    qps: float
    """Requests per second."""


class RateLimiter(Struct):
    """Rate limit."""

    tokenBucketRateLimiter: TokenBucketRateLimiter | None = None
    """Token bucket rate limiter."""


class RESTClientConfiguration(Struct):
    """Settings of a Kubernetes client."""

    rateLimiter: RateLimiter | None = None
    """Rate limit."""


class ReloadableComponentConfiguration(Struct):
    """API client settings of a component."""

    restClient: RESTClientConfiguration | None = None
    """Client settings."""


class ArchSpecificConfiguration(Struct):
    """Settings of one architecture."""

    emulatedMachines: list[str] | None = None
    """Allowed machine types, as patterns."""
    machineType: str | None = None
    """Default machine type."""
    ovmfPath: str | None = None
    """Directory of the UEFI firmware."""


class ArchConfiguration(Struct):
    """Settings by architecture."""

    amd64: ArchSpecificConfiguration | None = None
    """x86, 64 bit."""
    arm64: ArchSpecificConfiguration | None = None
    """ARM, 64 bit."""
    defaultArchitecture: str | None = None
    """Default architecture."""
    ppc64le: ArchSpecificConfiguration | None = None
    """POWER."""
    s390x: ArchSpecificConfiguration | None = None
    """IBM Z."""


class ChangedBlockTrackingSelectors(Struct):
    """Selectors of VMs with changed block tracking."""

    namespaceLabelSelector: LabelSelector | None = None
    """Namespace selector."""
    virtualMachineLabelSelector: LabelSelector | None = None
    """VM selector."""


class CommonInstancetypesDeployment(Struct):
    """Predefined instancetypes."""

    enabled: bool | None = None
    """Whether they are deployed."""


class TDXAttestationConfiguration(Struct):
    """Attestation of guests."""

    enforced: bool | None = None
    """Refuses guests without attestation."""
    qgsSocketPath: str | None = None
    """Socket of the quote generation service."""


class TDXConfiguration(Struct):
    """Intel TDX."""

    attestation: TDXAttestationConfiguration | None = None
    """Attestation of guests."""


class ConfidentialComputeConfiguration(Struct):
    """Confidential computing."""

    tdx: TDXConfiguration | None = None
    """Intel TDX."""


class DiskVerification(Struct):
    """Limits of disk image verification."""

    memoryLimit: Quantity
    """Memory limit of the verification."""


class LogVerbosity(Struct):
    """Log verbosity of the components."""

    nodeVerbosity: dict[str, Int32] | None = None
    """Verbosity by node."""
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
    """Developer settings."""

    clusterProfiler: bool | None = None
    """Profiles all components."""
    cpuAllocationRatio: UInt32 | None = None
    """Virtual CPUs per physical CPU in the pod's request; 10 when absent."""
    disabledFeatureGates: list[str] | None = None
    """Disabled feature gates."""
    diskVerification: DiskVerification | None = None
    """Limits of disk image verification."""
    featureGates: list[str] | None = None
    """Enabled feature gates."""
    logVerbosity: LogVerbosity | None = None
    """Log verbosity of the components."""
    memoryOvercommit: Int32 | None = None
    """Guest memory in percent of the pod's memory request; 100 when absent."""
    minimumClusterTSCFrequency: Int64 | None = None
    """Minimum TSC frequency."""
    minimumReservePVCBytes: Int64 | None = None
    """Bytes reserved on a volume."""
    nodeSelectors: dict[str, str] | None = None
    """Labels that the nodes of VMs must have."""
    pvcTolerateLessSpaceUpToPercent: Int32 | None = None
    """Percent by which a volume may be smaller than requested."""
    useEmulation: bool | None = None
    """Falls back to software emulation on nodes without working KVM."""


class HypervisorConfiguration(Struct):
    """An allowed hypervisor."""

    name: str | None = None
    """Its name."""


class InstancetypeConfiguration(Struct):
    """How instancetypes are applied."""

    referencePolicy: str | None = None
    """reference keeps the reference, expand writes the values into the VM."""


class KSMConfiguration(Struct):
    """Nodes with kernel same-page merging."""

    nodeLabelSelector: LabelSelector | None = None
    """Node selector."""


class LiveUpdateConfiguration(Struct):
    """Limits of live updates."""

    maxCpuSockets: Int64 | None = None
    """Maximum number of sockets with CPU hot-plug."""
    maxGuest: Quantity | None = None
    """Maximum memory of a guest with memory hot-plug."""
    maxHotplugRatio: Int64 | None = None
    """Maximum hot-plug ratio relative to the initial size."""


class NodeMediatedDeviceTypesConfig(Struct):
    """Mediated device types of selected nodes."""

    nodeSelector: dict[str, str]
    """Labels of the nodes."""
    mediatedDeviceTypes: list[str] | None = None
    """Mediated device types."""
    mediatedDevicesTypes: list[str] | None = None
    """Older name of mediatedDeviceTypes."""


class MediatedDevicesConfiguration(Struct):
    """Mediated devices created on nodes."""

    enabled: bool | None = None
    """They are created."""
    mediatedDeviceTypes: list[str] | None = None
    """Mediated device types."""
    mediatedDevicesTypes: list[str] | None = None
    """Older name of mediatedDeviceTypes."""
    nodeMediatedDeviceTypes: list[NodeMediatedDeviceTypesConfig] | None = None
    """Mediated device types by node."""


class ResourceRequirementsWithoutClaims(Struct):
    """Resources of a container."""

    limits: dict[str, Quantity] | None = None
    """Limits."""
    requests: dict[str, Quantity] | None = None
    """Requests."""


class InterfaceBindingMigration(Struct):
    """Migration settings of a plugin."""

    method: str | None = None
    """Method, such as link-refresh."""


class InterfaceBindingPlugin(Struct):
    """A network binding plugin."""

    computeResourceOverhead: ResourceRequirementsWithoutClaims | None = None
    """Additional resources of the pod."""
    domainAttachmentType: str | None = None
    """What it attaches to the guest: a tap device or its own device."""
    downwardAPI: str | None = None
    """Device information passed to the plugin."""
    migration: InterfaceBindingMigration | None = None
    """Migration settings."""
    networkAttachmentDefinition: str | None = None
    """NetworkAttachmentDefinition of the CNI plugin."""
    sidecarImage: str | None = None
    """Sidecar container image."""


class NetworkConfiguration(Struct):
    """Settings of networks."""

    binding: dict[str, InterfaceBindingPlugin] | None = None
    """Network binding plugins."""
    defaultNetworkInterface: str | None = None
    """Default binding on the pod network; masquerade when absent."""
    permitBridgeInterfaceOnPodNetwork: bool | None = None
    """Allows a bridge on the pod network."""
    permitSlirpInterface: bool | None = None
    """No longer used."""


class MediatedHostDevice(Struct):
    """Mediated devices."""

    mdevNameSelector: str
    """Mediated device type."""
    resourceName: str
    """Resource name."""
    externalResourceProvider: bool | None = None
    """An external device plugin provides the resource."""


class PciHostDevice(Struct):
    """PCI devices."""

    pciVendorSelector: str
    """vendor:device in hexadecimal."""
    resourceName: str
    """Resource name."""
    externalResourceProvider: bool | None = None
    """An external device plugin provides the resource."""


class USBSelector(Struct):
    """A USB device."""

    product: str
    """Product number in hexadecimal."""
    vendor: str
    """Vendor number in hexadecimal."""


class USBHostDevice(Struct):
    """A group of USB devices."""

    resourceName: str
    """Resource name."""
    externalResourceProvider: bool | None = None
    """An external device plugin provides the resource."""
    selectors: list[USBSelector] | None = None
    """The devices."""


class PermittedHostDevices(Struct):
    """Host devices that may be passed through to guests."""

    mediatedDevices: list[MediatedHostDevice] | None = None
    """Mediated devices."""
    pciHostDevices: list[PciHostDevice] | None = None
    """PCI devices."""
    usb: list[USBHostDevice] | None = None
    """USB devices."""


class PersistentReservationConfiguration(Struct):
    """SCSI persistent reservations."""

    enabled: bool | None = None
    """Whether they are enabled."""


class CustomProfile(Struct):
    """A seccomp profile."""

    localhostProfile: str | None = None
    """Path of the profile on the node."""
    runtimeDefaultProfile: bool | None = None
    """The container runtime's profile."""


class VirtualMachineInstanceProfile(Struct):
    """Profile of launchers."""

    customProfile: CustomProfile | None = None
    """A custom profile."""


class SeccompConfiguration(Struct):
    """Seccomp settings of launchers."""

    virtualMachineInstanceProfile: VirtualMachineInstanceProfile | None = None
    """Profile of launchers."""


class SMBiosConfiguration(Struct):
    """SMBIOS strings of all guests."""

    family: str | None = None
    """Family."""
    manufacturer: str | None = None
    """Manufacturer."""
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
    """Type of the container."""


class TLSConfiguration(Struct):
    """TLS of the installation's servers."""

    ciphers: list[str] | None = None
    """Allowed cipher suites."""
    minTLSVersion: str | None = None
    """Minimum TLS version."""


class VirtTemplateDeployment(Struct):
    """Templates of virtual machines."""

    enabled: bool | None = None
    """Whether they are deployed."""


class DisableFreePageReporting(Struct):
    """Disables free page reporting by guests."""


class DisableSerialConsoleLog(Struct):
    """Serial consoles are not written to the pods' logs."""


class VirtualMachineOptions(Struct):
    """Options of all VMs."""

    disableFreePageReporting: DisableFreePageReporting | None = None
    """Disables free page reporting by guests."""
    disableSerialConsoleLog: DisableSerialConsoleLog | None = None
    """Serial consoles are not written to the pods' logs."""


class KubeVirtConfiguration(Struct):
    """Settings of virtual machines."""

    additionalGuestMemoryOverheadRatio: str | None = None
    """Factor for the computed memory overhead of launcher pods."""
    apiConfiguration: ReloadableComponentConfiguration | None = None
    """API client settings of the gateway."""
    architectureConfiguration: ArchConfiguration | None = None
    """Settings by architecture."""
    autoCPULimitNamespaceLabelSelector: LabelSelector | None = None
    """Namespaces whose VMs get a CPU limit."""
    changedBlockTrackingLabelSelectors: ChangedBlockTrackingSelectors | None = None
    """Selectors of VMs with changed block tracking."""
    commonInstancetypesDeployment: CommonInstancetypesDeployment | None = None
    """Predefined instancetypes."""
    confidentialCompute: ConfidentialComputeConfiguration | None = None
    """Confidential computing."""
    controllerConfiguration: ReloadableComponentConfiguration | None = None
    """API client settings of the controller."""
    cpuModel: str | None = None
    """Default CPU model."""
    cpuRequest: Quantity | None = None
    """Default CPU request of a launcher pod."""
    defaultRuntimeClass: str | None = None
    """Runtime class of launcher pods."""
    developerConfiguration: DeveloperConfiguration | None = None
    """Developer settings."""
    emulatedMachines: list[str] | None = None
    """Allowed machine types, as patterns."""
    evictionStrategy: Literal["None", "LiveMigrate", "LiveMigrateIfPossible", "External"] | None = None
    """Default eviction strategy."""
    handlerConfiguration: ReloadableComponentConfiguration | None = None
    """API client settings of the handlers."""
    hypervisors: list[HypervisorConfiguration] | None = None
    """Allowed hypervisors."""
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When container disks are pulled."""
    instancetype: InstancetypeConfiguration | None = None
    """How instancetypes are applied."""
    ksmConfiguration: KSMConfiguration | None = None
    """Nodes with kernel same-page merging."""
    liveUpdateConfiguration: LiveUpdateConfiguration | None = None
    """Limits of live updates."""
    machineType: str | None = None
    """Default machine type."""
    mediatedDevicesConfiguration: MediatedDevicesConfiguration | None = None
    """Mediated devices created on nodes."""
    memBalloonStatsPeriod: Int64 | None = None
    """Seconds between reports of the memory balloon."""
    migrations: MigrationConfiguration | None = None
    """Settings of migrations."""
    minCPUModel: str | None = None
    """Minimum CPU model for node labels."""
    network: NetworkConfiguration | None = None
    """Settings of networks."""
    obsoleteCPUModels: dict[str, bool] | None = None
    """CPU models excluded from node labels."""
    ovmfPath: str | None = None
    """Directory of the UEFI firmware."""
    permittedHostDevices: PermittedHostDevices | None = None
    """Host devices that may be passed through to guests."""
    persistentReservationConfiguration: PersistentReservationConfiguration | None = None
    """SCSI persistent reservations."""
    roleAggregationStrategy: str | None = None
    """Aggregation of the default cluster roles."""
    seccompConfiguration: SeccompConfiguration | None = None
    """Seccomp settings of launchers."""
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
    """Maximum number of VMs per node."""
    virtualMachineOptions: VirtualMachineOptions | None = None
    """Options of all VMs."""
    vmRolloutStrategy: Literal["Stage", "LiveUpdate"] | None = None
    """Whether changes of a VM apply to its running VMI or after a restart."""
    vmStateStorageClass: str | None = None
    """Storage class for the state of firmware and TPM."""
    webhookConfiguration: ReloadableComponentConfiguration | None = None
    """API client settings of the webhooks."""
