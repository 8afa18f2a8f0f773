"""Kubernetes objects with the fields that hyperlet uses; other fields are skipped on decoding.

Never write decoded objects back: use patches. All fields have defaults, so that objects of any Kubernetes version
decode. Types embedded in a VM's spec are in `api.k8s.podspec` and re-exported here.
"""

from api.k8s.meta import ObjectMeta, Quantity, Struct
from api.k8s.podspec import Affinity as Affinity
from api.k8s.podspec import DownwardAPIVolumeFile as DownwardAPIVolumeFile
from api.k8s.podspec import ExecAction as ExecAction
from api.k8s.podspec import HTTPGetAction as HTTPGetAction
from api.k8s.podspec import LabelSelector as LabelSelector
from api.k8s.podspec import LocalObjectReference as LocalObjectReference
from api.k8s.podspec import NodeSelectorTerm as NodeSelectorTerm
from api.k8s.podspec import PersistentVolumeClaimSpec as PersistentVolumeClaimSpec
from api.k8s.podspec import PodDNSConfig as PodDNSConfig
from api.k8s.podspec import TCPSocketAction as TCPSocketAction
from api.k8s.podspec import Toleration as Toleration
from api.k8s.podspec import TopologySpreadConstraint as TopologySpreadConstraint
from api.k8s.podspec import TypedLocalObjectReference as TypedLocalObjectReference
from api.k8s.podspec import TypedObjectReference as TypedObjectReference
from api.k8s.podspec import VolumeResourceRequirements as VolumeResourceRequirements
from api.k8s.resource import Resource


class K8sObject(Struct):
    """A core object as read; apiVersion and kind are absent in the items of a list."""

    apiVersion: str | None = None
    kind: str | None = None
    metadata: ObjectMeta = ObjectMeta()


class StatusCondition(Struct):
    """A condition of a pod, node or claim."""

    type: str = ""
    status: str = ""
    reason: str | None = None
    message: str | None = None
    lastTransitionTime: str | None = None
    lastHeartbeatTime: str | None = None
    observedGeneration: int | None = None
    """The generation of the pod that the condition is about."""


class ContainerResources(Struct):
    """Requests and limits of a container."""

    requests: dict[str, Quantity] | None = None
    limits: dict[str, Quantity] | None = None


class EnvVar(Struct):
    """A variable of a container's environment, where its value stands in the pod."""

    name: str = ""
    value: str | None = None


class Container(Struct):
    """A container of a pod."""

    name: str = ""
    image: str | None = None
    env: list[EnvVar] | None = None
    resources: ContainerResources | None = None


class PodSpec(Struct):
    """Spec of a pod, restricted to the fields that hyperlet uses."""

    nodeName: str | None = None
    hostNetwork: bool | None = None
    hostUsers: bool | None = None
    """False: the pod has its own user namespace."""
    containers: list[Container] = []
    initContainers: list[Container] | None = None
    priority: int | None = None
    priorityClassName: str | None = None
    serviceAccountName: str | None = None
    terminationGracePeriodSeconds: int | None = None


class ContainerStateWaiting(Struct):
    """A container that does not run yet; `reason` is for instance ErrImagePull."""

    reason: str | None = None
    message: str | None = None


class ContainerStateRunning(Struct):
    """A container that runs."""

    startedAt: str | None = None


class ContainerStateTerminated(Struct):
    """A container that has ended."""

    exitCode: int = 0
    signal: int | None = None
    reason: str | None = None
    message: str | None = None
    startedAt: str | None = None
    finishedAt: str | None = None


class ContainerState(Struct):
    """At most one of the three is set."""

    waiting: ContainerStateWaiting | None = None
    running: ContainerStateRunning | None = None
    terminated: ContainerStateTerminated | None = None


class ContainerStatus(Struct):
    """Status of a container, reported by the kubelet."""

    name: str = ""
    ready: bool = False
    started: bool | None = None
    restartCount: int = 0
    image: str | None = None
    imageID: str | None = None
    containerID: str | None = None
    state: ContainerState | None = None
    lastState: ContainerState | None = None
    resources: ContainerResources | None = None
    """Allocated resources; the spec has the desired ones."""


class PodIP(Struct):
    """An address of a pod."""

    ip: str = ""


class PodStatus(Struct):
    """Status of a pod, reported by kubelet and scheduler."""

    phase: str | None = None
    reason: str | None = None
    message: str | None = None
    qosClass: str | None = None
    observedGeneration: int | None = None
    startTime: str | None = None
    hostIP: str | None = None
    podIP: str | None = None
    podIPs: list[PodIP] | None = None
    conditions: list[StatusCondition] | None = None
    containerStatuses: list[ContainerStatus] | None = None
    initContainerStatuses: list[ContainerStatus] | None = None


class Pod(K8sObject):
    """A pod."""

    RESOURCE = Resource("", "v1", "Pod", "pods")

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Taint(Struct):
    """Keeps pods off a node."""

    key: str = ""
    value: str | None = None
    effect: str | None = None
    timeAdded: str | None = None


class NodeSpec(Struct):
    """Spec of a node."""

    unschedulable: bool | None = None
    taints: list[Taint] | None = None
    podCIDRs: list[str] | None = None
    providerID: str | None = None


class NodeAddress(Struct):
    """An address of a node."""

    type: str = ""
    address: str = ""


class NodeInfo(Struct):
    """Versions of what runs on a node."""

    kernelVersion: str | None = None
    kubeletVersion: str | None = None
    architecture: str | None = None
    bootID: str | None = None
    containerRuntimeVersion: str | None = None


class RuntimeFeatures(Struct):
    """What a container runtime can do."""

    userNamespaces: bool | None = None


class RuntimeHandler(Struct):
    """A container runtime of a node; the default one has no name."""

    name: str = ""
    features: RuntimeFeatures | None = None


class NodeStatus(Struct):
    """Status of a node, reported by the kubelet."""

    capacity: dict[str, Quantity] | None = None
    allocatable: dict[str, Quantity] | None = None
    conditions: list[StatusCondition] | None = None
    addresses: list[NodeAddress] | None = None
    nodeInfo: NodeInfo | None = None
    runtimeHandlers: list[RuntimeHandler] | None = None


class Node(K8sObject):
    """A node."""

    RESOURCE = Resource("", "v1", "Node", "nodes", namespaced=False)

    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class PersistentVolumeClaimStatus(Struct):
    """Status of a claim."""

    phase: str | None = None
    accessModes: list[str] | None = None
    capacity: dict[str, Quantity] | None = None
    conditions: list[StatusCondition] | None = None


class PersistentVolumeClaim(K8sObject):
    """A claim for storage."""

    RESOURCE = Resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")

    spec: PersistentVolumeClaimSpec = PersistentVolumeClaimSpec()
    status: PersistentVolumeClaimStatus = PersistentVolumeClaimStatus()


class Secret(K8sObject):
    """A secret; only its metadata and the names and values of its keys (base64)."""

    RESOURCE = Resource("", "v1", "Secret", "secrets")

    type: str | None = None
    data: dict[str, str] | None = None


class ConfigMap(K8sObject):
    """A config map."""

    RESOURCE = Resource("", "v1", "ConfigMap", "configmaps")

    data: dict[str, str] | None = None
    binaryData: dict[str, str] | None = None


class ObjectReference(Struct):
    """The object that an Event is about."""

    apiVersion: str | None = None
    kind: str | None = None
    namespace: str | None = None
    name: str | None = None
    uid: str | None = None
    resourceVersion: str | None = None
    fieldPath: str | None = None


class EventSource(Struct):
    """Reporter of an Event."""

    component: str | None = None
    host: str | None = None


class Event(K8sObject):
    """Something that happened to an object (core/v1)."""

    RESOURCE = Resource("", "v1", "Event", "events")

    involvedObject: ObjectReference = ObjectReference()
    type: str | None = None
    reason: str | None = None
    message: str | None = None
    count: int | None = None
    firstTimestamp: str | None = None
    lastTimestamp: str | None = None
    eventTime: str | None = None
    source: EventSource | None = None
    reportingComponent: str | None = None
    reportingInstance: str | None = None
    action: str | None = None


class ControllerRevision(K8sObject):
    """A ControllerRevision (apps/v1). Its data, which can be large, is not decoded."""

    RESOURCE = Resource("apps", "v1", "ControllerRevision", "controllerrevisions")

    revision: int | None = None


class LeaseSpec(Struct):
    """Who holds a lease and for how long; times are RFC 3339 with microseconds."""

    holderIdentity: str | None = None
    leaseDurationSeconds: int | None = None
    acquireTime: str | None = None
    renewTime: str | None = None
    leaseTransitions: int | None = None


class Lease(K8sObject):
    """A lease of coordination.k8s.io/v1."""

    RESOURCE = Resource("coordination.k8s.io", "v1", "Lease", "leases")

    spec: LeaseSpec = LeaseSpec()


class PodDisruptionBudgetSpec(Struct):
    """How many pods must stay."""

    minAvailable: int | str | None = None
    maxUnavailable: int | str | None = None
    selector: LabelSelector | None = None


class PodDisruptionBudgetStatus(Struct):
    """What the disruption controller counts."""

    disruptionsAllowed: int | None = None
    currentHealthy: int | None = None
    desiredHealthy: int | None = None
    expectedPods: int | None = None
    observedGeneration: int | None = None


class PodDisruptionBudget(K8sObject):
    """A budget of policy/v1."""

    RESOURCE = Resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")

    spec: PodDisruptionBudgetSpec = PodDisruptionBudgetSpec()
    status: PodDisruptionBudgetStatus = PodDisruptionBudgetStatus()
