"""The declaration of a kind: everything that is known about it besides its fields.

Group, storage version, kind and plural are those of the Struct's `RESOURCE`. From a declaration follow the CRD
(`api.schema.crd`), admission (`gateway.admission.kinds`), and the controller's store (`controller.cache.cluster`);
`tests/unit/test_kinds.py` compares the manifests with it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from api.errors import Fault
from api.k8s.meta import Struct
from api.k8s.resource import Resource, resource_of
from api.kubevirt.configuration import KubeVirtConfiguration
from api.validation.unsupported import SupportedFields

Json = dict[str, Any]
Rights = Mapping[str, str]
"""Subresource (empty: the object itself) to RBAC verbs, separated by spaces."""


class Column(NamedTuple):
    """An additional printer column. Priority 1 is shown by `-o wide` only."""

    name: str
    path: str
    type: Literal["string", "integer", "date"] = "string"
    priority: int = 0


class Scale(NamedTuple):
    """JSON paths of the scale subresource."""

    replicas: str
    status_replicas: str
    selector: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Kind:
    """One kind of the API server that is defined by a CRD of hyperlet."""

    struct: type[Struct]

    # ---- the CRD
    older_versions: tuple[str, ...] = ()
    """Versions that are served besides the storage version, with the same schema."""
    singular: str = ""
    """Defaults to the kind in lower case."""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ("all",)
    columns: tuple[Column, ...] = ()
    has_status: bool = True
    """Whether there is a status subresource: the API server then ignores a status in other writes."""
    scale: Scale | None = None
    required: tuple[str, ...] = ("spec",)
    """Required fields of the root."""

    # ---- validation, by admission and again by the controller
    validate: Callable[[Any, KubeVirtConfiguration | None], list[Fault]] | None = None
    """All faults of an object. None: the kind takes no part in admission."""
    warn: Callable[[Any, KubeVirtConfiguration | None], list[str]] | None = None
    """Warnings about a valid object."""
    supported: SupportedFields | None = None
    """The supported fields of the spec; None: all."""
    annotation_faults: Callable[[Mapping[str, str]], Iterator[Fault]] | None = None
    """Faults of annotations that are settings; `validate` includes them."""
    fixed_spec: str = ""
    """What to do instead of changing the spec, which is immutable. Empty: it may be changed."""
    vmi_spec: str = ""
    """Path of the spec of the VMIs that are created from an object, for the namespace's Pod Security Standard."""
    owned_metadata: tuple[str, ...] = ("metadata",)
    """Paths of metadata in which users may not change the labels and annotations that hyperlet owns."""
    created_unchecked: bool = False
    """Whether objects may be created while no gateway answers: hyperlet itself creates them, or its installation."""

    # ---- mutation
    defaults: Callable[[Any, KubeVirtConfiguration], Json] | None = None
    """Fields that the spec must have: admission adds them, and replaces other values. None: the kind is not mutated."""
    finalizer: str = ""
    """The controller's finalizer. Admission adds it together with defaults, and protects it from users."""

    # ---- use
    controller: Literal["ignores", "watches", "reconciles"] = "ignores"
    """Whether the controller has a store of the kind, and a reconciler (`controller.reconcilers`)."""
    rights: Mapping[str, Rights] = field(default_factory=dict)
    """ClusterRole to what it grants on the kind; no other role grants anything."""

    @property
    def resource(self) -> Resource:
        """Group, storage version, kind and plural."""
        return resource_of(self.struct)

    @property
    def name(self) -> str:
        """The kind."""
        return self.resource.kind

    @property
    def group(self) -> str:
        """The API group."""
        return self.resource.group

    @property
    def plural(self) -> str:
        """The name in URLs and RBAC rules."""
        return self.resource.plural

    @property
    def versions(self) -> tuple[str, ...]:
        """The served versions, the storage version first."""
        return (self.resource.version, *self.older_versions)

    def verbs(self, role: str) -> dict[str, frozenset[str]]:
        """The verbs that a ClusterRole grants, by resource: `<plural>` or `<plural>/<subresource>`."""
        return {
            f"{self.plural}/{subresource}" if subresource else self.plural: frozenset(verbs.split())
            for subresource, verbs in self.rights.get(role, {}).items()
        }
