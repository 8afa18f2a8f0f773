"""Which kinds are admitted, and how. A kind to come adds a line to RULES, and a resource to manifests/webhooks.yaml."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from api import names
from api.configuration import KubeVirtConfiguration
from api.errors import Fault
from gateway.admission import giving_way, mutation, ownership, validation
from gateway.admission.patches import Operation
from gateway.admission.review import Request, Verdict

Mutate = Callable[[Request, KubeVirtConfiguration], list[Operation]]


def _no_defaults(_request: Request, _configuration: KubeVirtConfiguration) -> list[Operation]:
    return []


def _no_warnings(_request: Request, _configuration: KubeVirtConfiguration) -> Sequence[str]:
    return ()


class Rules(NamedTuple):
    """How objects of one kind are admitted. Components' own changes are never refused: see `validate`."""

    validate: Callable[[Request, KubeVirtConfiguration], Iterable[Fault]]
    mutate: Mutate = _no_defaults
    warn: Callable[[Request, KubeVirtConfiguration], Sequence[str]] = _no_warnings
    has_status: bool = True
    """The kind has a status subresource, so that the API server itself takes a status out of what a person writes."""


RULES: dict[str, Rules] = {
    names.KIND_VM: Rules(validation.vm, mutation.vm, validation.vm_warnings),
    names.KIND_VMI: Rules(validation.vmi, mutation.vmi, validation.vmi_warnings, has_status=False),
    names.KIND_MIGRATION: Rules(validation.migration),
    names.KIND_KUBEVIRT: Rules(validation.kubevirt),
}
OPERATIONS = ("CREATE", "UPDATE")


def mutate(
    request: Request, configuration: KubeVirtConfiguration, namespace: str, more: Sequence[Fault] = ()
) -> Verdict:
    """The defaults of an object. Refuses what `validate` would refuse.

    The API server looks at types and values after this and before `validate`: only here every fault is told at once.
    """
    rules = _rules(request)
    if rules is None:
        return Verdict()
    if ownership.is_component(request, namespace):
        patch = rules.mutate(request, configuration) if request.operation == "CREATE" else []
        return Verdict(patch=patch)
    dropped: list[Operation] = []
    if not rules.has_status and request.operation == "CREATE" and (request.object or {}).get("status"):
        # An object as `kubectl get` shows it: of other kinds the API server itself takes the status out.
        dropped = [{"op": "remove", "path": "/status"}]
        bare = {key: value for key, value in (request.object or {}).items() if key != "status"}
        request = msgspec.structs.replace(request, object=bare)
    if request.kind.kind == names.KIND_VM and request.oldObject is not None:
        dropped = giving_way.operations(request.object or {}, request.oldObject)
        request = msgspec.structs.replace(request, object=giving_way.without(request.object or {}, dropped))
    faults = [*_faults(rules, request, configuration), *more]
    if faults:
        return Verdict(faults=faults)
    kept = [] if ownership.is_administrator(request) else mutation.restored(request, ownership.FINALIZERS)
    return Verdict(faults=faults, patch=[*dropped, *rules.mutate(request, configuration), *kept])


def validate(
    request: Request, configuration: KubeVirtConfiguration, namespace: str, more: Sequence[Fault] = ()
) -> Verdict:
    """Every fault of an object. `namespace` is where hyperlet runs, `more` what is known from elsewhere.

    What controller and gateway write passes: they must be able to finish what an older version began, and the
    controller has validated what it makes. A handler may report.
    """
    rules = _rules(request)
    if rules is None:
        return Verdict()
    if ownership.is_handler(request, namespace):
        return Verdict(faults=list(ownership.handler_faults(request)))
    if ownership.is_component(request, namespace):
        return Verdict()
    faults = [*_faults(rules, request, configuration), *more]
    return Verdict(faults=faults, warnings=() if faults else rules.warn(request, configuration))


def _faults(rules: Rules, request: Request, configuration: KubeVirtConfiguration) -> list[Fault]:
    faults = list(rules.validate(request, configuration))
    known = {fault.path for fault in faults}
    return faults + [fault for fault in validation.dropped_fields(request) if fault.path not in known]


def _rules(request: Request) -> Rules | None:
    if request.kind.group != names.GROUP or request.subResource or request.operation not in OPERATIONS:
        return None
    return RULES.get(request.kind.kind) if isinstance(request.object, dict) else None
