"""Which kinds are admitted, and how. A kind to come adds a line to RULES, and a resource to manifests/webhooks.yaml."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from api import names
from api.configuration import KubeVirtConfiguration
from api.errors import Fault
from gateway.admission import mutation, ownership, validation
from gateway.admission.patches import Operation
from gateway.admission.review import Request, Verdict

Mutate = Callable[[Request, KubeVirtConfiguration], list[Operation]]


def _no_defaults(_request: Request, _configuration: KubeVirtConfiguration) -> list[Operation]:
    return []


def _no_warnings(_request: Request) -> Sequence[str]:
    return ()


class Rules(NamedTuple):
    """How objects of one kind are admitted. Components' own changes are never refused: see `validate`."""

    validate: Callable[[Request], Iterable[Fault]]
    mutate: Mutate = _no_defaults
    warn: Callable[[Request], Sequence[str]] = _no_warnings
    has_status: bool = True
    """The kind has a status subresource, so that the API server itself takes a status out of what a person writes."""


RULES: dict[str, Rules] = {
    names.KIND_VM: Rules(validation.vm, mutation.vm, validation.vm_warnings),
    names.KIND_VMI: Rules(validation.vmi, mutation.vmi, has_status=False),
    names.KIND_MIGRATION: Rules(validation.migration),
    names.KIND_KUBEVIRT: Rules(validation.kubevirt),
}
OPERATIONS = ("CREATE", "UPDATE")


def mutate(request: Request, configuration: KubeVirtConfiguration, namespace: str) -> Verdict:
    """The defaults of an object. Never refuses."""
    rules = _rules(request)
    if rules is None:
        return Verdict()
    own = ownership.is_component(request, namespace)
    if own and request.operation != "CREATE":
        return Verdict()
    patch = rules.mutate(request, configuration)
    if not own and not rules.has_status:
        patch = [*patch, *mutation.without_status(request)]
    return Verdict(patch=patch)


def validate(request: Request, namespace: str) -> Verdict:
    """Every fault of an object. `namespace` is where hyperlet runs.

    What hyperlet's own accounts write passes: they must be able to finish what an older version began, and the
    controller has validated what it makes.
    """
    rules = _rules(request)
    if rules is None or ownership.is_component(request, namespace):
        return Verdict()
    faults = list(rules.validate(request))
    return Verdict(faults=faults, warnings=() if faults else rules.warn(request))


def _rules(request: Request) -> Rules | None:
    if request.kind.group != names.GROUP or request.subResource or request.operation not in OPERATIONS:
        return None
    return RULES.get(request.kind.kind) if isinstance(request.object, dict) else None
