"""Admission rules per kind. A new kind adds an entry to RULES, and a resource to manifests/webhooks.yaml."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from api import names
from api.errors import Fault
from api.kubevirt.configuration import KubeVirtConfiguration
from gateway.admission import default_conflicts, mutation, ownership, validation
from gateway.admission.json_patch import Operation
from gateway.admission.review import AdmissionDecision, AdmissionRequest

Mutate = Callable[[AdmissionRequest, KubeVirtConfiguration], list[Operation]]


def _no_defaults(_request: AdmissionRequest, _configuration: KubeVirtConfiguration) -> list[Operation]:
    return []


def _no_warnings(_request: AdmissionRequest, _configuration: KubeVirtConfiguration) -> Sequence[str]:
    return ()


class Rules(NamedTuple):
    """Admission of one kind. Changes by hyperlet's components are not refused: see `validate`."""

    validate: Callable[[AdmissionRequest, KubeVirtConfiguration], Iterable[Fault]]
    mutate: Mutate = _no_defaults
    warn: Callable[[AdmissionRequest, KubeVirtConfiguration], Sequence[str]] = _no_warnings
    has_status: bool = True
    """Whether the kind has a status subresource: the API server then ignores a status in other writes."""


RULES: dict[str, Rules] = {
    names.KIND_VM: Rules(validation.vm, mutation.vm, validation.vm_warnings),
    names.KIND_VMI: Rules(validation.vmi, mutation.vmi, validation.vmi_warnings, has_status=False),
    names.KIND_MIGRATION: Rules(validation.migration),
    names.KIND_KUBEVIRT: Rules(validation.kubevirt),
}
OPERATIONS = ("CREATE", "UPDATE")


def mutate(
    request: AdmissionRequest, configuration: KubeVirtConfiguration, namespace: str, more: Sequence[Fault] = ()
) -> AdmissionDecision:
    """Applies defaults to an object. Refuses what `validate` would refuse.

    The API server validates the schema between mutation and `validate`: only here all faults can be reported at once.
    """
    rules = _rules(request)
    if rules is None:
        return AdmissionDecision()
    if ownership.is_component(request, namespace):
        patch = rules.mutate(request, configuration) if request.operation == "CREATE" else []
        return AdmissionDecision(patch=patch)
    dropped: list[Operation] = []
    if not rules.has_status and request.operation == "CREATE" and (request.object or {}).get("status"):
        # For instance output of `kubectl get`. With a status subresource the API server drops the status itself.
        dropped = [{"op": "remove", "path": "/status"}]
        bare = {key: value for key, value in (request.object or {}).items() if key != "status"}
        request = msgspec.structs.replace(request, object=bare)
    if request.kind.kind == names.KIND_VM and request.oldObject is not None:
        dropped = default_conflicts.operations(request.object or {}, request.oldObject)
        request = msgspec.structs.replace(request, object=default_conflicts.without(request.object or {}, dropped))
    faults = [*_faults(rules, request, configuration), *more]
    if faults:
        return AdmissionDecision(faults=faults)
    kept = [] if ownership.is_administrator(request) else mutation.restored(request, ownership.FINALIZERS)
    return AdmissionDecision(faults=faults, patch=[*dropped, *rules.mutate(request, configuration), *kept])


def validate(
    request: AdmissionRequest, configuration: KubeVirtConfiguration, namespace: str, more: Sequence[Fault] = ()
) -> AdmissionDecision:
    """All faults of an object. `namespace` is hyperlet's, `more` are faults from other checks.

    Writes by controller and gateway are allowed: they must be able to complete operations of an older version, and the
    controller validates what it creates. A handler may only report status.
    """
    rules = _rules(request)
    if rules is None:
        return AdmissionDecision()
    if ownership.is_handler(request, namespace):
        return AdmissionDecision(faults=list(ownership.handler_faults(request)))
    if ownership.is_component(request, namespace):
        return AdmissionDecision()
    faults = [*_faults(rules, request, configuration), *more]
    return AdmissionDecision(faults=faults, warnings=() if faults else rules.warn(request, configuration))


def _faults(rules: Rules, request: AdmissionRequest, configuration: KubeVirtConfiguration) -> list[Fault]:
    faults = list(rules.validate(request, configuration))
    known = {fault.path for fault in faults}
    return faults + [fault for fault in validation.dropped_fields(request) if fault.path not in known]


def _rules(request: AdmissionRequest) -> Rules | None:
    if request.kind.group != names.GROUP or request.subResource or request.operation not in OPERATIONS:
        return None
    return RULES.get(request.kind.kind) if isinstance(request.object, dict) else None
