"""Kubernetes types embedded in a VM's spec and copied to the launcher pod unchanged.

Source: the Kubernetes core/v1 and meta/v1 API. Complete, unlike `api.k8s.objects`: all fields must reach the pod.
"""

from typing import Annotated, Literal

from msgspec import Meta

from api.k8s.meta import Int32, Int64, Positive32, Quantity, Struct

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[int, Meta(ge=0, le=2**31 - 1, extra_json_schema={"format": "int32"})]


class LabelSelectorRequirement(Struct):
    """One condition on a label."""

    key: str
    """Label to compare."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label is compared with the values."""
    values: list[str] | None = None
    """Values for In and NotIn."""


class LabelSelector(Struct):
    """Selects objects by their labels; all conditions must hold."""

    matchLabels: dict[str, str] | None = None
    """Labels that must have exactly these values."""
    matchExpressions: list[LabelSelectorRequirement] | None = None
    """Further conditions."""


class NodeSelectorRequirement(Struct):
    """One condition on a node's label or field."""

    key: str
    """Label or field of the node."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How it is compared with the values."""
    values: list[str] | None = None
    """Values to compare with."""


class NodeSelectorTerm(Struct):
    """Conditions on a node that must all hold."""

    matchExpressions: list[NodeSelectorRequirement] | None = None
    """Conditions on the node's labels."""
    matchFields: list[NodeSelectorRequirement] | None = None
    """Conditions on the node's fields."""


class NodeSelector(Struct):
    """Terms of which at least one must match the node."""

    nodeSelectorTerms: list[NodeSelectorTerm]
    """The alternatives."""


class PreferredSchedulingTerm(Struct):
    """A kind of node that is preferred."""

    weight: Annotated[int, Meta(ge=1, le=100)]
    """Weight, 1 to 100."""
    preference: NodeSelectorTerm
    """The nodes preferred."""


class NodeAffinity(Struct):
    """Which nodes are required or preferred."""

    requiredDuringSchedulingIgnoredDuringExecution: NodeSelector | None = None
    """Nodes that are eligible at all."""
    preferredDuringSchedulingIgnoredDuringExecution: list[PreferredSchedulingTerm] | None = None
    """Nodes that are preferred, by weight."""


class PodAffinityTerm(Struct):
    """Pods to be near to, or far from."""

    topologyKey: str
    """Node label that says what counts as the same place."""
    labelSelector: LabelSelector | None = None
    """The pods meant."""
    namespaceSelector: LabelSelector | None = None
    """Namespaces in which they are looked for."""
    namespaces: list[str] | None = None
    """Namespaces by name; the pod's own when neither is given."""
    matchLabelKeys: list[str] | None = None
    """Labels whose values are taken from the new pod and added to the selector."""
    mismatchLabelKeys: list[str] | None = None
    """Labels whose values must differ from the new pod's."""


class WeightedPodAffinityTerm(Struct):
    """A preference for being near to, or far from, pods."""

    weight: Annotated[int, Meta(ge=1, le=100)]
    """Weight, 1 to 100."""
    podAffinityTerm: PodAffinityTerm
    """The pods and the place."""


class PodAffinity(Struct):
    """Pods to run near to."""

    requiredDuringSchedulingIgnoredDuringExecution: list[PodAffinityTerm] | None = None
    """Terms that must hold."""
    preferredDuringSchedulingIgnoredDuringExecution: list[WeightedPodAffinityTerm] | None = None
    """Terms that should hold, by weight."""


class PodAntiAffinity(Struct):
    """Pods to run away from."""

    requiredDuringSchedulingIgnoredDuringExecution: list[PodAffinityTerm] | None = None
    """Terms that must hold."""
    preferredDuringSchedulingIgnoredDuringExecution: list[WeightedPodAffinityTerm] | None = None
    """Terms that should hold, by weight."""


class Affinity(Struct):
    """Rules for choosing the node."""

    nodeAffinity: NodeAffinity | None = None
    """Rules about the node itself."""
    podAffinity: PodAffinity | None = None
    """Pods to be near to."""
    podAntiAffinity: PodAntiAffinity | None = None
    """Pods to be away from."""


class Toleration(Struct):
    """A tolerated node taint."""

    key: str | None = None
    """Key of the taint; empty with Exists matches every taint."""
    operator: Literal["Exists", "Equal", "Gt", "Lt"] | None = None
    """How the value is compared; Equal when absent."""
    value: str | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; every effect when absent."""
    tolerationSeconds: Int64 | None = None
    """For NoExecute: how many seconds the taint is tolerated."""


class TopologySpreadConstraint(Struct):
    """Spreads matching pods evenly over places."""

    maxSkew: Positive32
    """Largest difference in number between two places."""
    topologyKey: str
    """Node label that says what counts as one place."""
    whenUnsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """What to do when the spread cannot be kept."""
    labelSelector: LabelSelector | None = None
    """The pods that are counted."""
    matchLabelKeys: list[str] | None = None
    """Labels whose values are taken from the new pod and added to the selector."""
    minDomains: Positive32 | None = None
    """Least number of places that must exist."""
    nodeAffinityPolicy: Literal["Honor", "Ignore"] | None = None
    """Whether nodes that the affinity excludes are counted."""
    nodeTaintsPolicy: Literal["Honor", "Ignore"] | None = None
    """Whether nodes with taints that are not tolerated are counted."""


class PodDNSConfigOption(Struct):
    """An option of the resolver."""

    name: str | None = None
    """Name of the option."""
    value: str | None = None
    """Its value, if it has one."""


class PodDNSConfig(Struct):
    """DNS settings added to what the DNS policy gives."""

    nameservers: list[str] | None = None
    """Addresses of name servers."""
    searches: list[str] | None = None
    """Domains in which short names are looked up."""
    options: list[PodDNSConfigOption] | None = None
    """Options of the resolver."""


class LocalObjectReference(Struct):
    """An object of a known kind in the same namespace."""

    name: str | None = None
    """Name of the object."""


class TypedLocalObjectReference(Struct):
    """An object in the same namespace."""

    kind: str
    """Kind of the object."""
    name: str
    """Name of the object."""
    apiGroup: str | None = None
    """API group; the core group when absent."""


class TypedObjectReference(Struct):
    """An object that may live in another namespace."""

    kind: str
    """Kind of the object."""
    name: str
    """Name of the object."""
    apiGroup: str | None = None
    """API group; the core group when absent."""
    namespace: str | None = None
    """Namespace; the same one when absent."""


class HTTPHeader(Struct):
    """A header of a probe request."""

    name: str
    """Name of the header."""
    value: str
    """Its value."""


class HTTPGetAction(Struct):
    """Sends an HTTP GET; status 200 to 399 is success."""

    port: str | int
    """Port in the guest."""
    host: str | None = None
    """Host header and address; the guest's address when absent."""
    path: str | None = None
    """Path of the request."""
    scheme: Literal["HTTP", "HTTPS"] | None = None
    """HTTP when absent."""
    httpHeaders: list[HTTPHeader] | None = None
    """Headers to send."""


class TCPSocketAction(Struct):
    """Opens a TCP connection; an accepted connection is success."""

    port: str | int
    """Port in the guest."""
    host: str | None = None
    """Address; the guest's when absent."""


class ExecAction(Struct):
    """Runs a command in the guest; exit status 0 is success."""

    command: list[str] | None = None
    """Program and arguments, without a shell."""


class VolumeResourceRequirements(Struct):
    """Storage request of a claim."""

    requests: dict[str, Quantity] | None = None
    """Least amount, under the key `storage`."""
    limits: dict[str, Quantity] | None = None
    """Greatest amount, under the key `storage`."""


class PersistentVolumeClaimSpec(Struct):
    """Specification of a claim."""

    accessModes: list[str] | None = None
    """How nodes may use the volume at the same time, such as ReadWriteOnce or ReadWriteMany."""
    resources: VolumeResourceRequirements | None = None
    """Size."""
    storageClassName: str | None = None
    """Class of storage; the cluster's default class when absent, none when empty."""
    volumeMode: Literal["Block", "Filesystem", "FromStorageProfile"] | None = None
    """Whether the volume holds a file system or is a bare device."""
    volumeName: str | None = None
    """The volume to bind to, by name."""
    selector: LabelSelector | None = None
    """Volumes that may be bound."""
    dataSource: TypedLocalObjectReference | None = None
    """Initial content: a snapshot or another claim."""
    dataSourceRef: TypedObjectReference | None = None
    """Like dataSource, for any kind and namespace."""
    volumeAttributesClassName: str | None = None
    """Class of attributes that the storage driver applies."""


class ObjectFieldSelector(Struct):
    """A field of the pod."""

    fieldPath: str
    """Path of the field."""
    apiVersion: str | None = None
    """Version that the path is written for."""


class ResourceFieldSelector(Struct):
    """A resource of a container."""

    resource: str
    """Resource, such as limits.cpu."""
    containerName: str | None = None
    """Name of the container."""
    divisor: Quantity | None = None
    """Unit in which the value is given."""


class DownwardAPIVolumeFile(Struct):
    """A file that holds a field of the pod."""

    path: str
    """Relative path of the file."""
    fieldRef: ObjectFieldSelector | None = None
    """The field shown."""
    resourceFieldRef: ResourceFieldSelector | None = None
    """The resource shown."""
    mode: Int32 | None = None
    """Permission bits."""
