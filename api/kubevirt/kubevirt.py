"""KubeVirt: the one object that configures an installation."""

from collections.abc import Iterable
from typing import Literal

from api import names
from api.k8s.meta import Condition, Duration, Int32, Int64, Object, Struct, UInt8
from api.k8s.podspec import Affinity, LocalObjectReference, Toleration
from api.k8s.resource import Resource
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.migration import VirtualMachineInstanceMigration as VirtualMachineInstanceMigration
from api.kubevirt.migration_state import MigrationConfiguration as MigrationConfiguration
from api.kubevirt.vm import VirtualMachine as VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance as VirtualMachineInstance


class CertConfig(Struct):
    """Lifetime of a certificate."""

    duration: Duration | None = None
    """How long it is valid."""
    renewBefore: Duration | None = None
    """How long before its expiry a new one is issued."""


class KubeVirtSelfSignConfiguration(Struct):
    """Certificates that are signed by the installation itself."""

    ca: CertConfig | None = None
    """Lifetime of the CA."""
    caOverlapInterval: Duration | None = None
    """How long an old CA remains trusted."""
    caRotateInterval: Duration | None = None
    """Lifetime of a CA."""
    certRotateInterval: Duration | None = None
    """Lifetime of a certificate."""
    server: CertConfig | None = None
    """Lifetime of server certificates."""


class KubeVirtCertificateRotateStrategy(Struct):
    """Lifetimes of certificates."""

    selfSigned: KubeVirtSelfSignConfiguration | None = None
    """Certificates that are signed by the installation itself."""


class Flags(Struct):
    """Flags of the components."""

    api: dict[str, str] | None = None
    """Of the gateway."""
    controller: dict[str, str] | None = None
    """Of the controller."""
    handler: dict[str, str] | None = None
    """Of the handlers."""


class CustomizeComponentsPatch(Struct):
    """A patch."""

    patch: str
    """The patch itself."""
    resourceName: str
    """Name of what is patched."""
    resourceType: str
    """Kind of what is patched."""
    type: str
    """strategic, merge or json."""


class CustomizeComponents(Struct):
    """Patches of the installation's manifests."""

    flags: Flags | None = None
    """Flags of the components."""
    patches: list[CustomizeComponentsPatch] | None = None
    """Patches of their manifests."""


class NodePlacement(Struct):
    """Rules for choosing nodes."""

    affinity: Affinity | None = None
    """Rules for choosing the node."""
    nodeSelector: dict[str, str] | None = None
    """Labels that the node must have."""
    tolerations: list[Toleration] | None = None
    """Tolerated taints."""


class ComponentConfig(Struct):
    """Where components run."""

    nodePlacement: NodePlacement | None = None
    """Nodes."""
    replicas: UInt8 | None = None
    """Number of replicas."""


class KubeVirtWorkloadUpdateStrategy(Struct):
    """Update strategy of running VMs."""

    batchEvictionInterval: Duration | None = None
    """Time between batches."""
    batchEvictionSize: Int32 | None = None
    """VMs in one batch."""
    workloadUpdateMethods: list[str] | None = None
    """LiveMigrate, Evict or both."""


class KubeVirtSpec(Struct):
    """Desired state of the installation."""

    certificateRotateStrategy: KubeVirtCertificateRotateStrategy | None = None
    """Lifetimes of certificates."""
    configuration: KubeVirtConfiguration | None = None
    """Settings of virtual machines."""
    customizeComponents: CustomizeComponents | None = None
    """Patches of the installation's manifests."""
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the components' images are pulled."""
    imagePullSecrets: list[LocalObjectReference] | None = None
    """Secrets with the registry's credentials."""
    imageRegistry: str | None = None
    """Registry of the components' images."""
    imageTag: str | None = None
    """Tag of the components' images."""
    infra: ComponentConfig | None = None
    """Where the central components run."""
    monitorAccount: str | None = None
    """Service account of the monitoring."""
    monitorNamespace: str | None = None
    """Namespace of the monitoring."""
    productComponent: str | None = None
    """Label for the product that this is a part of."""
    productName: str | None = None
    """Label for the product's name."""
    productVersion: str | None = None
    """Label for the product's version."""
    serviceMonitorNamespace: str | None = None
    """Namespace for the ServiceMonitor."""
    synchronizationPort: str | None = None
    """Port for migrations between clusters."""
    uninstallStrategy: Literal["RemoveWorkloads", "BlockUninstallIfWorkloadsExist"] | None = None
    """Whether removing the installation removes its VMs or is refused while there are any."""
    workloadUpdateStrategy: KubeVirtWorkloadUpdateStrategy | None = None
    """Update strategy of running VMs."""
    workloads: ComponentConfig | None = None
    """Where the handlers run."""


class KubeVirtCondition(Condition):
    """A condition of the installation."""


class GenerationStatus(Struct):
    """Generation of an object of the installation."""

    group: str
    """API group."""
    lastGeneration: Int64
    """Generation that was last written."""
    name: str
    """Name."""
    resource: str
    """Resource."""
    hash: str | None = None
    """Checksum of objects without a generation."""
    namespace: str | None = None
    """Namespace."""


class KubeVirtStatus(Struct):
    """Observed state of the installation."""

    conditions: list[KubeVirtCondition] | None = None
    """Conditions of the object."""
    defaultArchitecture: str | None = None
    """Default architecture."""
    generations: list[GenerationStatus] | None = None
    """Generations of the installation's objects."""
    observedDeploymentConfig: str | None = None
    """Current settings of the installation."""
    observedDeploymentID: str | None = None
    """Checksum of them."""
    observedGeneration: Int64 | None = None
    """Observed generation."""
    observedKubeVirtRegistry: str | None = None
    """Current registry."""
    observedKubeVirtVersion: str | None = None
    """Current version."""
    operatorVersion: str | None = None
    """Version of the operator."""
    outdatedVirtualMachineInstanceWorkloads: Int32 | None = None
    """Number of VMIs with an older launcher."""
    phase: str | None = None
    """Deploying, Deployed, Deleting or Deleted."""
    synchronizationAddresses: list[str] | None = None
    """Addresses for migrations between clusters."""
    targetDeploymentConfig: str | None = None
    """Target settings of the installation."""
    targetDeploymentID: str | None = None
    """Checksum of them."""
    targetKubeVirtRegistry: str | None = None
    """Target registry."""
    targetKubeVirtVersion: str | None = None
    """Target version."""


class KubeVirt(Object):
    """The one object that configures an installation."""

    RESOURCE = Resource(names.GROUP, names.VERSION, names.KIND_KUBEVIRT, names.PLURAL_KUBEVIRT)

    apiVersion: Literal["kubevirt.io/v1", "kubevirt.io/v1alpha3"]
    """API group and version."""
    kind: Literal["KubeVirt"]
    """Kind of the object."""
    spec: KubeVirtSpec
    """Desired state."""
    status: KubeVirtStatus | None = None
    """Observed state."""


def spec_of(objects: Iterable[KubeVirt]) -> KubeVirtSpec:
    """The spec of the KubeVirt CR (the oldest of several); an empty one when there is none."""
    by_age = sorted(objects, key=lambda kv: (kv.metadata.creationTimestamp or "", kv.metadata.name or ""))
    return by_age[0].spec if by_age else KubeVirtSpec()


def configuration_of(objects: Iterable[KubeVirt]) -> KubeVirtConfiguration:
    """The configuration of the KubeVirt CR; defaults when there is none."""
    return spec_of(objects).configuration or KubeVirtConfiguration()
