"""Rules for scheduling fields: those of the API server for pods, reported with the paths of the VM.

Source: k8s.io/kubernetes, pkg/apis/core/validation (Kubernetes 1.36).
"""

from collections.abc import Iterator, Sequence

from api import names
from api.errors import Fault
from api.k8s.podspec import (
    Affinity,
    LabelSelector,
    LabelSelectorRequirement,
    NodeSelectorRequirement,
    NodeSelectorTerm,
    PodAffinity,
    PodAffinityTerm,
    PodAntiAffinity,
    Toleration,
    TopologySpreadConstraint,
)
from api.kubevirt.vmi import VirtualMachineInstanceSpec
from api.validation import syntax
from api.validation.domain_rules import check

_NODE_NAME = "metadata.name"
_WITH_VALUES = ("In", "NotIn")
_WITHOUT = ("Exists", "DoesNotExist")
_NUMERIC = ("Gt", "Lt")
_INT64 = 2**63


def scheduling_faults(spec: VirtualMachineInstanceSpec, path: str) -> Iterator[Fault]:
    """Faults of nodeSelector, affinity, tolerations, topologySpreadConstraints and related names."""
    for key, value in (spec.nodeSelector or {}).items():
        yield from check(syntax.label_key(key), f"{path}.nodeSelector")
        yield from check(syntax.label_value(value), f"{path}.nodeSelector.{key[:80]}")
    for field in ("priorityClassName", "schedulerName"):
        value = getattr(spec, field)
        if value is not None:
            yield from check(syntax.object_name(value), f"{path}.{field}")
    for index, toleration in enumerate(spec.tolerations or ()):
        yield from _toleration(toleration, f"{path}.tolerations[{index}]")
    if spec.affinity is not None:
        yield from _affinity(spec.affinity, f"{path}.affinity")
    yield from _spread(spec.topologySpreadConstraints or [], f"{path}.topologySpreadConstraints")


def _toleration(toleration: Toleration, path: str) -> Iterator[Fault]:
    operator = toleration.operator or "Equal"
    if toleration.key:
        yield from check(syntax.label_key(toleration.key), f"{path}.key")
    elif operator != "Exists":
        yield Fault(f"{path}.operator", names.FAULT_INVALID, "must be Exists when key is empty")
    if toleration.tolerationSeconds is not None and toleration.effect != "NoExecute":
        yield Fault(f"{path}.effect", names.FAULT_INVALID, "must be NoExecute when tolerationSeconds is set")
    if operator == "Exists" and toleration.value:
        yield Fault(f"{path}.value", names.FAULT_INVALID, "must be empty with operator Exists")
    elif operator in _NUMERIC:
        if not _is_int64(toleration.value or ""):
            yield Fault(f"{path}.value", names.FAULT_INVALID, f"must be an integer with operator {operator}")
    elif toleration.value:
        yield from check(syntax.label_value(toleration.value), f"{path}.value")


def _is_int64(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 20 and -_INT64 <= int(text) < _INT64


# ---- affinity -------------------------------------------------------------------------------------------------------


def _affinity(affinity: Affinity, path: str) -> Iterator[Fault]:
    node = affinity.nodeAffinity
    if node and node.requiredDuringSchedulingIgnoredDuringExecution:
        here = f"{path}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
        terms = node.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms
        if not terms:
            yield Fault(here, names.FAULT_REQUIRED, "required: at least one term")
        for index, term in enumerate(terms):
            yield from _term(term, f"{here}[{index}]")
    if node:
        here = f"{path}.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution"
        for index, preferred in enumerate(node.preferredDuringSchedulingIgnoredDuringExecution or ()):
            yield from _term(preferred.preference, f"{here}[{index}].preference")
    for field in ("podAffinity", "podAntiAffinity"):
        pods: PodAffinity | PodAntiAffinity | None = getattr(affinity, field)
        if pods is not None:
            yield from _pod_affinity(pods, f"{path}.{field}")


def _term(term: NodeSelectorTerm, path: str) -> Iterator[Fault]:
    yield from _expressions(term.matchExpressions, path)
    for index, requirement in enumerate(term.matchFields or ()):
        yield from _node_field(requirement, f"{path}.matchFields[{index}]")


def _expressions(
    requirements: Sequence[NodeSelectorRequirement | LabelSelectorRequirement] | None, path: str
) -> Iterator[Fault]:
    for index, requirement in enumerate(requirements or ()):
        here = f"{path}.matchExpressions[{index}]"
        yield from check(syntax.label_key(requirement.key), f"{here}.key")
        yield from _values(requirement.operator, requirement.values, here)
        for number, value in enumerate(requirement.values or ()):
            yield from check(syntax.label_value(value), f"{here}.values[{number}]")


def _values(operator: str, values: list[str] | None, path: str) -> Iterator[Fault]:
    count = len(values or ())
    if operator in _WITH_VALUES and not count:
        yield Fault(f"{path}.values", names.FAULT_REQUIRED, f"required: at least one value with operator {operator}")
    elif operator in _WITHOUT and count:
        yield Fault(f"{path}.values", names.FAULT_FORBIDDEN, f"must be empty with operator {operator}")
    elif operator in _NUMERIC and count != 1:
        yield Fault(f"{path}.values", names.FAULT_REQUIRED, f"required: exactly one value with operator {operator}")


def _node_field(requirement: NodeSelectorRequirement, path: str) -> Iterator[Fault]:
    if requirement.key != _NODE_NAME:
        yield Fault(f"{path}.key", names.FAULT_INVALID, f"must be {_NODE_NAME}")
    if requirement.operator not in _WITH_VALUES:
        yield Fault(f"{path}.operator", names.FAULT_INVALID, "must be In or NotIn")
    elif len(requirement.values or ()) != 1:
        yield Fault(f"{path}.values", names.FAULT_REQUIRED, "required: exactly one value")
    for number, value in enumerate(requirement.values or ()):
        yield from check(syntax.object_name(value), f"{path}.values[{number}]")


def _pod_affinity(pods: PodAffinity | PodAntiAffinity, path: str) -> Iterator[Fault]:
    here = f"{path}.requiredDuringSchedulingIgnoredDuringExecution"
    for index, term in enumerate(pods.requiredDuringSchedulingIgnoredDuringExecution or ()):
        yield from _pod_term(term, f"{here}[{index}]")
    here = f"{path}.preferredDuringSchedulingIgnoredDuringExecution"
    for index, weighted in enumerate(pods.preferredDuringSchedulingIgnoredDuringExecution or ()):
        yield from _pod_term(weighted.podAffinityTerm, f"{here}[{index}].podAffinityTerm")


def _pod_term(term: PodAffinityTerm, path: str) -> Iterator[Fault]:
    yield from _topology_key(term.topologyKey, f"{path}.topologyKey")
    yield from _selector(term.labelSelector, f"{path}.labelSelector")
    yield from _selector(term.namespaceSelector, f"{path}.namespaceSelector")
    for index, namespace in enumerate(term.namespaces or ()):
        yield from check(syntax.dns_label(namespace), f"{path}.namespaces[{index}]")
    yield from _label_keys(term.matchLabelKeys, term.labelSelector, f"{path}.matchLabelKeys")
    yield from _label_keys(term.mismatchLabelKeys, term.labelSelector, f"{path}.mismatchLabelKeys")
    both = set(term.matchLabelKeys or ()) & set(term.mismatchLabelKeys or ())
    if both:
        yield Fault(f"{path}.mismatchLabelKeys", names.FAULT_INVALID, f"{min(both)[:80]!r} is also in matchLabelKeys")


def _topology_key(key: str, path: str) -> Iterator[Fault]:
    if not key:
        yield Fault(path, names.FAULT_REQUIRED, "must not be empty")
    else:
        yield from check(syntax.label_key(key), path)


def _selector(selector: LabelSelector | None, path: str) -> Iterator[Fault]:
    if selector is None:
        return
    for key, value in (selector.matchLabels or {}).items():
        yield from check(syntax.label_key(key), f"{path}.matchLabels")
        yield from check(syntax.label_value(value), f"{path}.matchLabels.{key[:80]}")
    yield from _expressions(selector.matchExpressions, path)


def _label_keys(keys: list[str] | None, selector: LabelSelector | None, path: str) -> Iterator[Fault]:
    if keys and selector is None:
        yield Fault(path, names.FAULT_FORBIDDEN, "requires labelSelector")
    for index, key in enumerate(keys or ()):
        yield from check(syntax.label_key(key), f"{path}[{index}]")


# ---- spreading ------------------------------------------------------------------------------------------------------


def _spread(constraints: list[TopologySpreadConstraint], path: str) -> Iterator[Fault]:
    seen: set[tuple[str, str]] = set()
    for index, constraint in enumerate(constraints):
        here = f"{path}[{index}]"
        yield from _topology_key(constraint.topologyKey, f"{here}.topologyKey")
        yield from _selector(constraint.labelSelector, f"{here}.labelSelector")
        yield from _label_keys(constraint.matchLabelKeys, constraint.labelSelector, f"{here}.matchLabelKeys")
        if constraint.minDomains is not None and constraint.whenUnsatisfiable != "DoNotSchedule":
            yield Fault(f"{here}.minDomains", names.FAULT_INVALID, "requires whenUnsatisfiable: DoNotSchedule")
        kind = (constraint.topologyKey, constraint.whenUnsatisfiable)
        if kind in seen:
            yield Fault(
                f"{here}.topologyKey",
                names.FAULT_DUPLICATE,
                f"{kind[0][:80]!r} with {kind[1]} is already used by another constraint",
            )
        seen.add(kind)
