"""VirtualMachineInstance: one running (or about to run) virtual machine."""

from typing import Annotated, Literal

from msgspec import Meta

from api import names
from api.k8s.meta import BY_NAME, Object, ObjectMeta, Struct
from api.k8s.podspec import (
    Affinity,
    ExecAction,
    HTTPGetAction,
    PodDNSConfig,
    Seconds,
    TCPSocketAction,
    Toleration,
    TopologySpreadConstraint,
)
from api.k8s.resource import Resource
from api.kubevirt.domain import DomainSpec
from api.kubevirt.networks import Network
from api.kubevirt.vmi_status import VirtualMachineInstanceStatus
from api.kubevirt.volumes import UtilityVolume, Volume

GraceSeconds = Annotated[int, Meta(ge=0, le=2**63 - 1, extra_json_schema={"format": "int64"})]


class ConfigDriveSSHPublicKeyAccessCredentialPropagation(Struct):
    """Propagation through cloud-init's config drive."""


class NoCloudSSHPublicKeyAccessCredentialPropagation(Struct):
    """Propagation through cloud-init's NoCloud disk."""


class QemuGuestAgentSSHPublicKeyAccessCredentialPropagation(Struct):
    """Propagation through the guest agent."""

    users: list[str]
    """Users to add the keys to."""


class SSHPublicKeyAccessCredentialPropagationMethod(Struct):
    """Propagation method of SSH keys; exactly one."""

    configDrive: ConfigDriveSSHPublicKeyAccessCredentialPropagation | None = None
    """Propagation through cloud-init's config drive."""
    noCloud: NoCloudSSHPublicKeyAccessCredentialPropagation | None = None
    """Propagation through cloud-init's NoCloud disk."""
    qemuGuestAgent: QemuGuestAgentSSHPublicKeyAccessCredentialPropagation | None = None
    """Propagation through the guest agent, also while the guest is running."""


class AccessCredentialSecretSource(Struct):
    """A Secret."""

    secretName: str
    """Name of the Secret."""


class SSHPublicKeyAccessCredentialSource(Struct):
    """Source of SSH keys."""

    secret: AccessCredentialSecretSource | None = None
    """A Secret; each value is a key."""


class SSHPublicKeyAccessCredential(Struct):
    """SSH keys for the guest."""

    propagationMethod: SSHPublicKeyAccessCredentialPropagationMethod
    """Propagation method."""
    source: SSHPublicKeyAccessCredentialSource
    """Source."""


class QemuGuestAgentUserPasswordAccessCredentialPropagation(Struct):
    """Propagation through the guest agent."""


class UserPasswordAccessCredentialPropagationMethod(Struct):
    """Propagation method of passwords."""

    qemuGuestAgent: QemuGuestAgentUserPasswordAccessCredentialPropagation | None = None
    """Propagation through the guest agent."""


class UserPasswordAccessCredentialSource(Struct):
    """Source of passwords."""

    secret: AccessCredentialSecretSource | None = None
    """A Secret; the keys are user names, the values passwords."""


class UserPasswordAccessCredential(Struct):
    """Passwords for users of the guest."""

    propagationMethod: UserPasswordAccessCredentialPropagationMethod
    """Propagation method."""
    source: UserPasswordAccessCredentialSource
    """Source."""


class AccessCredential(Struct):
    """Credentials for the guest; exactly one kind."""

    sshPublicKey: SSHPublicKeyAccessCredential | None = None
    """SSH keys."""
    userPassword: UserPasswordAccessCredential | None = None
    """Passwords."""


class GuestAgentPing(Struct):
    """Pings the guest agent."""


class Probe(Struct):
    """A periodic check of the guest; exactly one action."""

    exec: ExecAction | None = None
    """Runs a command through the guest agent."""
    failureThreshold: Seconds | None = None
    """Consecutive failures until the probe fails; 3 when absent."""
    guestAgentPing: GuestAgentPing | None = None
    """Pings the guest agent."""
    httpGet: HTTPGetAction | None = None
    """HTTP GET request."""
    initialDelaySeconds: Seconds | None = None
    """Seconds from start to the first probe."""
    periodSeconds: Seconds | None = None
    """Seconds between probes; 10 when absent."""
    successThreshold: Seconds | None = None
    """Consecutive successes until the probe succeeds; 1 when absent."""
    tcpSocket: TCPSocketAction | None = None
    """TCP connection."""
    timeoutSeconds: Seconds | None = None
    """Timeout in seconds; 1 when absent."""


class VirtualMachineInstanceResourceClaim(Struct):
    """A claim for devices."""

    name: str
    """Name referenced by devices."""
    resourceClaimName: str | None = None
    """Name of an existing ResourceClaim."""
    resourceClaimTemplateName: str | None = None
    """A ResourceClaimTemplate to create the claim from."""


class VirtualMachineInstanceSpec(Struct):
    """Spec of a VMI: domain, networks, volumes and scheduling."""

    domain: DomainSpec
    """The domain: CPUs, memory, devices and firmware."""
    accessCredentials: list[AccessCredential] | None = None
    """SSH keys and passwords for the guest."""
    affinity: Affinity | None = None
    """Scheduling rules, copied to the pod."""
    architecture: str | None = None
    """Architecture of the guest; amd64 when absent."""
    dnsConfig: PodDNSConfig | None = None
    """DNS settings of the pod, also passed to the guest by DHCP."""
    dnsPolicy: Literal["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"] | None = None
    """DNS policy of the pod; the guest gets the same name servers."""
    evictionStrategy: Literal["None", "LiveMigrate", "LiveMigrateIfPossible", "External"] | None = None
    """On a node drain: None stops the VM, LiveMigrate migrates it, External leaves it to an external controller."""
    hostname: str | None = None
    """Host name of the guest, set through DHCP and cloud-init; the VMI's name when absent."""
    livenessProbe: Probe | None = None
    """On failure the kubelet stops the VMI; a VM is restarted according to its run strategy."""
    networks: Annotated[list[Network], BY_NAME] | None = None
    """Networks of the interfaces."""
    nodeSelector: dict[str, str] | None = None
    """Labels that the node must have."""
    priorityClassName: str | None = None
    """Priority of the pod."""
    readinessProbe: Probe | None = None
    """On failure the VMI is removed from Services."""
    resourceClaims: list[VirtualMachineInstanceResourceClaim] | None = None
    """Claims for devices."""
    schedulerName: str | None = None
    """Scheduler of the pod."""
    serviceAccountName: str | None = None
    """Service account of the pod."""
    startStrategy: Literal["Paused"] | None = None
    """Paused: start with paused CPUs."""
    subdomain: str | None = None
    """With hostname: the guest's DNS name, through a headless Service of this name."""
    terminationGracePeriodSeconds: GraceSeconds | None = None
    """Seconds for the guest to shut down before it is powered off."""
    tolerations: list[Toleration] | None = None
    """Tolerated node taints."""
    topologySpreadConstraints: list[TopologySpreadConstraint] | None = None
    """Spreads VMs evenly over nodes or zones."""
    utilityVolumes: list[UtilityVolume] | None = None
    """Claims used by the launcher."""
    volumes: Annotated[list[Volume], BY_NAME] | None = None
    """Volumes of the disks."""


class VirtualMachineInstance(Object):
    """A running virtual machine. It terminates with the guest; a VirtualMachine recreates it."""

    RESOURCE = Resource(names.GROUP, names.VERSION, names.KIND_VMI, names.PLURAL_VMI)

    apiVersion: Literal["kubevirt.io/v1", "kubevirt.io/v1alpha3"]
    """API group and version."""
    kind: Literal["VirtualMachineInstance"]
    """Kind of the object."""
    spec: VirtualMachineInstanceSpec
    """Desired state."""
    status: VirtualMachineInstanceStatus | None = None
    """Observed state. Written by hyperlet only."""


class VirtualMachineInstanceTemplateSpec(Struct):
    """The template of a VirtualMachine's VMI."""

    metadata: ObjectMeta | None = None
    """Labels and annotations of the VMI."""
    spec: VirtualMachineInstanceSpec | None = None
    """Spec of the VMI."""


def phase_of(vmi: VirtualMachineInstance | None) -> str:
    """The phase; empty for a VMI that has not been reconciled yet, and for none."""
    return (vmi.status.phase if vmi and vmi.status else None) or names.PHASE_UNSET
