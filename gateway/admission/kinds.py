"""The decisions of the mutating and the validating webhook, from the declaration of the object's kind (`api.kinds`)."""

from collections.abc import Sequence

import msgspec

from api.errors import Fault
from api.kinds.catalog import CATALOG, Catalog
from api.kinds.kind import Kind
from api.kinds.kubevirt import VIRTUAL_MACHINE
from api.kubevirt.configuration import KubeVirtConfiguration
from gateway.admission import default_conflicts, mutation, ownership, validation
from gateway.admission.json_patch import Operation
from gateway.admission.review import AdmissionDecision, AdmissionRequest

OPERATIONS = ("CREATE", "UPDATE")


def mutate(
    request: AdmissionRequest,
    configuration: KubeVirtConfiguration,
    namespace: str,
    more: Sequence[Fault] = (),
    catalog: Catalog = CATALOG,
) -> AdmissionDecision:
    """Applies defaults to an object. Refuses what `validate` would refuse.

    The API server validates the schema between mutation and `validate`: only here all faults can be reported at once.
    """
    kind = _kind(request, catalog)
    if kind is None:
        return AdmissionDecision()
    if ownership.is_component(request, namespace):
        patch = mutation.completed(kind, request, configuration) if request.operation == "CREATE" else []
        return AdmissionDecision(patch=patch)
    dropped: list[Operation] = []
    if not kind.has_status and request.operation == "CREATE" and (request.object or {}).get("status"):
        # For instance output of `kubectl get`. With a status subresource the API server drops the status itself.
        dropped = [{"op": "remove", "path": "/status"}]
        bare = {key: value for key, value in (request.object or {}).items() if key != "status"}
        request = msgspec.structs.replace(request, object=bare)
    if kind is VIRTUAL_MACHINE and request.oldObject is not None:
        dropped = default_conflicts.operations(request.object or {}, request.oldObject)
        request = msgspec.structs.replace(request, object=default_conflicts.without(request.object or {}, dropped))
    faults = [*_faults(kind, request, configuration), *more]
    if faults:
        return AdmissionDecision(faults=faults)
    kept = [] if ownership.is_administrator(request) else mutation.restored(request, catalog.finalizers())
    return AdmissionDecision(faults=faults, patch=[*dropped, *mutation.completed(kind, request, configuration), *kept])


def validate(
    request: AdmissionRequest,
    configuration: KubeVirtConfiguration,
    namespace: str,
    more: Sequence[Fault] = (),
    catalog: Catalog = CATALOG,
) -> AdmissionDecision:
    """All faults of an object. `namespace` is hyperlet's, `more` are faults from other checks.

    Writes by controller and gateway are allowed: they must be able to complete operations of an older version, and the
    controller validates what it creates. A handler may only report status.
    """
    kind = _kind(request, catalog)
    if kind is None:
        return AdmissionDecision()
    if ownership.is_handler(request, namespace):
        return AdmissionDecision(faults=list(ownership.handler_faults(request)))
    if ownership.is_component(request, namespace):
        return AdmissionDecision()
    faults = [*_faults(kind, request, configuration), *more]
    return AdmissionDecision(
        faults=faults, warnings=() if faults else validation.warnings(kind, request, configuration)
    )


def _faults(kind: Kind, request: AdmissionRequest, configuration: KubeVirtConfiguration) -> list[Fault]:
    faults = list(validation.faults(kind, request, configuration))
    known = {fault.path for fault in faults}
    return faults + [fault for fault in validation.dropped_fields(kind, request) if fault.path not in known]


def _kind(request: AdmissionRequest, catalog: Catalog) -> Kind | None:
    """The kind of the object; None if it is not validated."""
    if request.subResource or request.operation not in OPERATIONS or not isinstance(request.object, dict):
        return None
    kind = catalog.get(request.kind.group, request.kind.kind)
    return kind if kind is not None and kind.validate is not None else None
