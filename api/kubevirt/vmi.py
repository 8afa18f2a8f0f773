"""VirtualMachineInstance: one running (or about to run) virtual machine."""

from typing import Annotated, Literal

from msgspec import Meta

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
from api.kubevirt.domain import DomainSpec
from api.kubevirt.networks import Network
from api.kubevirt.vmi_status import VirtualMachineInstanceStatus
from api.kubevirt.volumes import UtilityVolume, Volume

GraceSeconds = Annotated[int, Meta(ge=0, le=2**63 - 1, extra_json_schema={"format": "int64"})]


class ConfigDriveSSHPublicKeyAccessCredentialPropagation(Struct):
    """By cloud-init's config drive."""


class NoCloudSSHPublicKeyAccessCredentialPropagation(Struct):
    """By cloud-init's NoCloud disk."""


class QemuGuestAgentSSHPublicKeyAccessCredentialPropagation(Struct):
    """By the guest agent."""

    users: list[str]
    """Users who get the keys."""


class SSHPublicKeyAccessCredentialPropagationMethod(Struct):
    """How SSH keys get into the guest; one of the three."""

    configDrive: ConfigDriveSSHPublicKeyAccessCredentialPropagation | None = None
    """By cloud-init's config drive."""
    noCloud: NoCloudSSHPublicKeyAccessCredentialPropagation | None = None
    """By cloud-init's NoCloud disk."""
    qemuGuestAgent: QemuGuestAgentSSHPublicKeyAccessCredentialPropagation | None = None
    """By the guest agent, also while the guest runs."""


class AccessCredentialSecretSource(Struct):
    """A Secret."""

    secretName: str
    """Name of the Secret."""


class SSHPublicKeyAccessCredentialSource(Struct):
    """Where SSH keys are."""

    secret: AccessCredentialSecretSource | None = None
    """A Secret; each value is a key."""


class SSHPublicKeyAccessCredential(Struct):
    """SSH keys for the guest."""

    propagationMethod: SSHPublicKeyAccessCredentialPropagationMethod
    """How they get there."""
    source: SSHPublicKeyAccessCredentialSource
    """Where they are."""


class QemuGuestAgentUserPasswordAccessCredentialPropagation(Struct):
    """By the guest agent."""


class UserPasswordAccessCredentialPropagationMethod(Struct):
    """How passwords get into the guest."""

    qemuGuestAgent: QemuGuestAgentUserPasswordAccessCredentialPropagation | None = None
    """By the guest agent."""


class UserPasswordAccessCredentialSource(Struct):
    """Where passwords are."""

    secret: AccessCredentialSecretSource | None = None
    """A Secret; the keys are user names, the values passwords."""


class UserPasswordAccessCredential(Struct):
    """Passwords for users of the guest."""

    propagationMethod: UserPasswordAccessCredentialPropagationMethod
    """How they get there."""
    source: UserPasswordAccessCredentialSource
    """Where they are."""


class AccessCredential(Struct):
    """Something that is put into the guest to log in with; one of the kinds."""

    sshPublicKey: SSHPublicKeyAccessCredential | None = None
    """SSH keys."""
    userPassword: UserPasswordAccessCredential | None = None
    """Passwords."""


class GuestAgentPing(Struct):
    """Asks the guest agent whether it is there."""


class Probe(Struct):
    """A periodic check of the guest; exactly one action."""

    exec: ExecAction | None = None
    """Runs a command by the guest agent."""
    failureThreshold: Seconds | None = None
    """Failures in a row that count as failed; 3 when absent."""
    guestAgentPing: GuestAgentPing | None = None
    """Asks the guest agent whether it is there."""
    httpGet: HTTPGetAction | None = None
    """Asks for a page."""
    initialDelaySeconds: Seconds | None = None
    """Seconds after the start before the first question."""
    periodSeconds: Seconds | None = None
    """Seconds between questions; 10 when absent."""
    successThreshold: Seconds | None = None
    """Successes in a row that count as recovered; 1 when absent."""
    tcpSocket: TCPSocketAction | None = None
    """Opens a connection."""
    timeoutSeconds: Seconds | None = None
    """Seconds to wait for an answer; 1 when absent."""


class VirtualMachineInstanceResourceClaim(Struct):
    """A claim for devices."""

    name: str
    """Name by which devices refer to it."""
    resourceClaimName: str | None = None
    """A claim that is there."""
    resourceClaimTemplateName: str | None = None
    """A ResourceClaimTemplate to create the claim from."""


class VirtualMachineInstanceSpec(Struct):
    """A virtual machine, with its networks, its volumes and where it may run."""

    domain: DomainSpec
    """The machine itself."""
    accessCredentials: list[AccessCredential] | None = None
    """SSH keys and passwords that are put into the guest."""
    affinity: Affinity | None = None
    """Scheduling rules, copied to the pod."""
    architecture: str | None = None
    """Architecture of the guest; amd64 when absent."""
    dnsConfig: PodDNSConfig | None = None
    """DNS settings, for the pod and by DHCP for the guest."""
    dnsPolicy: Literal["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"] | None = None
    """DNS policy of the pod; the guest gets the same name servers."""
    evictionStrategy: Literal["None", "LiveMigrate", "LiveMigrateIfPossible", "External"] | None = None
    """On a node drain: None stops the VM, LiveMigrate migrates it, External leaves it to an external controller."""
    hostname: str | None = None
    """Host name of the guest, set through DHCP and cloud-init; the VMI's name when absent."""
    livenessProbe: Probe | None = None
    """Restarts the guest when it fails."""
    networks: Annotated[list[Network], BY_NAME] | None = None
    """Networks that the interfaces join."""
    nodeSelector: dict[str, str] | None = None
    """Labels that the node must have."""
    priorityClassName: str | None = None
    """Priority of the pod."""
    readinessProbe: Probe | None = None
    """Takes the guest out of Services while it fails."""
    resourceClaims: list[VirtualMachineInstanceResourceClaim] | None = None
    """Claims for devices."""
    schedulerName: str | None = None
    """Scheduler of the pod."""
    serviceAccountName: str | None = None
    """Service account of the pod."""
    startStrategy: Literal["Paused"] | None = None
    """Paused: the guest waits for the command to run."""
    subdomain: str | None = None
    """With the hostname: the guest's name in DNS, by a headless Service of this name."""
    terminationGracePeriodSeconds: GraceSeconds | None = None
    """Seconds for the guest to shut down before it is powered off."""
    tolerations: list[Toleration] | None = None
    """Tolerated node taints."""
    topologySpreadConstraints: list[TopologySpreadConstraint] | None = None
    """Spreads VMs evenly over nodes or zones."""
    utilityVolumes: list[UtilityVolume] | None = None
    """Claims used by the launcher."""
    volumes: Annotated[list[Volume], BY_NAME] | None = None
    """Contents of the disks."""


class VirtualMachineInstance(Object):
    """One virtual machine that runs, or is about to. It ends with the guest; a VirtualMachine keeps it going."""

    apiVersion: Literal["kubevirt.io/v1", "kubevirt.io/v1alpha3"]
    """API group and version."""
    kind: Literal["VirtualMachineInstance"]
    """Kind of the object."""
    spec: VirtualMachineInstanceSpec
    """The machine that is wanted."""
    status: VirtualMachineInstanceStatus | None = None
    """What there is. Written by hyperlet only."""


class VirtualMachineInstanceTemplateSpec(Struct):
    """The template of a VirtualMachine's VMI."""

    metadata: ObjectMeta | None = None
    """Labels and annotations that the VMI gets."""
    spec: VirtualMachineInstanceSpec | None = None
    """The machine."""
