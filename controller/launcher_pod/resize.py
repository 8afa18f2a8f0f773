"""Other requests and limits for a launcher pod that runs, in place, and the kubelet's answer to that.

`plan` is the one patch to send (subresource `resize`, stable since Kubernetes 1.35, on by default since 1.33),
`resize_status` what the kubelet has said so far; both are pure. `resize` sends the one and waits for the other.
Sources: https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/, KEP-1287.
"""

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

from api import names
from api.errors import ApiUnavailable, Expired, Forbidden
from api.k8s.meta import Quantity, format_bytes, format_millicores, quantity_bytes, quantity_millicores
from api.k8s.objects import ContainerResources, Pod, StatusCondition
from api.launcher_pods import END_PHASES, compute
from controller import conditions
from controller.actions import Json, Patch
from kit.kube import Kube

ANSWER_SECONDS = 30.0
"""How long the kubelet may take; it does within a second what it can do."""
PENDING, IN_PROGRESS = "PodResizePending", "PodResizeInProgress"
REFUSED_AS_INFEASIBLE = frozenset({"NodeCapacity", "UnsupportedPlatform"})
"""Causes for which the API server itself (from Kubernetes 1.36 on) refuses what the node can never do."""
_RETRY_SECONDS = 1.0
POLICY = tuple({"resourceName": resource, "restartPolicy": "NotRequired"} for resource in ("cpu", "memory"))
"""The container's resizePolicy: a guest never restarts for it."""


@dataclass(frozen=True)
class Amounts:
    """What the compute container is to have: CPU in thousandths, memory in bytes. None leaves it as it is.

    The API server refuses what would give the pod another quality of service, and the removal of a request or limit.
    """

    cpu_request: int | None = None
    cpu_limit: int | None = None
    memory_request: int | None = None
    memory_limit: int | None = None

    def covers(self, found: "Amounts") -> bool:
        """Whether `found` is what was wanted, as far as anything was."""
        return all(getattr(self, each.name) in (None, getattr(found, each.name)) for each in fields(self))


class ResizeState(enum.Enum):
    """How far a resize has come."""

    UNASKED = "the pod's spec says something else"
    WAITING = "the kubelet has not looked at it yet"
    IN_PROGRESS = "the kubelet is at it"
    DEFERRED = "the node has no room for it now; the kubelet does it when there is"
    INFEASIBLE = "the node can never do it"
    ACTUATED = "the container has it"
    ENDED = "the pod has ended, or is about to"


FINAL = frozenset(
    {ResizeState.UNASKED, ResizeState.DEFERRED, ResizeState.INFEASIBLE, ResizeState.ACTUATED, ResizeState.ENDED}
)
"""Answers that `resize` does not wait beyond; UNASKED there means that somebody has asked for other amounts since."""


class ResizeStatus(NamedTuple):
    """What the kubelet says; `message` are its words, empty where it has none."""

    state: ResizeState
    message: str = ""


# ---- pure -----------------------------------------------------------------------------------------------------------


def requested_amounts(pod: Pod) -> Amounts:
    """What the compute container's spec says."""
    found = (each.resources for each in pod.spec.containers if each.name == names.COMPUTE_CONTAINER)
    return _amounts(next(found, None))


def actual_amounts(pod: Pod) -> Amounts:
    """What the compute container has, as the kubelet has it from the container runtime."""
    status = compute(pod)
    return _amounts(status.resources if status else None)


def plan(pod: Pod, wanted: Amounts) -> list[Patch]:
    """The patch that asks for it; none where the spec says so already, or for a pod that has ended."""
    if _over(pod) or wanted.covers(requested_amounts(pod)):
        return []
    container: Json = {"name": names.COMPUTE_CONTAINER, "resources": dict(_resources(wanted))}
    body = {"metadata": {"uid": pod.metadata.uid}, "spec": {"containers": [container]}}
    meta = pod.metadata
    return [Patch(Pod, meta.namespace or "", meta.name or "", body, subresource="resize", patch_kind="strategic")]


def resize_status(pod: Pod, wanted: Amounts) -> ResizeStatus:
    """How far the kubelet has come with `wanted`."""
    if _over(pod):
        return ResizeStatus(ResizeState.ENDED)
    if not wanted.covers(requested_amounts(pod)):
        return ResizeStatus(ResizeState.UNASKED)
    pending, progress = _condition(pod, PENDING), _condition(pod, IN_PROGRESS)
    if pending is not None:
        state = ResizeState.INFEASIBLE if pending.reason == "Infeasible" else ResizeState.DEFERRED
        return ResizeStatus(state, pending.message or "")
    if progress is not None:
        return ResizeStatus(ResizeState.IN_PROGRESS, progress.message or "")
    seen, generation = pod.status.observedGeneration, pod.metadata.generation
    if (seen is not None and generation is not None and seen < generation) or not wanted.covers(actual_amounts(pod)):
        return ResizeStatus(ResizeState.WAITING)
    return ResizeStatus(ResizeState.ACTUATED)


def _over(pod: Pod) -> bool:
    return bool(pod.metadata.deletionTimestamp) or pod.status.phase in END_PHASES


def _condition(pod: Pod, kind: str) -> StatusCondition | None:
    """A condition that holds, and is about the present spec."""
    found = conditions.find(pod.status.conditions, kind)
    if found is None or found.status != names.TRUE:
        return None
    seen, generation = found.observedGeneration, pod.metadata.generation
    return None if seen is not None and generation is not None and seen < generation else found


def _amounts(resources: ContainerResources | None) -> Amounts:
    requests = (resources.requests if resources else None) or {}
    limits = (resources.limits if resources else None) or {}

    def cpu(of: dict[str, Quantity]) -> int | None:
        return quantity_millicores(of["cpu"]) if "cpu" in of else None

    def memory(of: dict[str, Quantity]) -> int | None:
        return quantity_bytes(of["memory"]) if "memory" in of else None

    return Amounts(cpu(requests), cpu(limits), memory(requests), memory(limits))


def _resources(wanted: Amounts) -> Iterator[tuple[str, Json]]:
    for field, cpu, memory in (
        ("requests", wanted.cpu_request, wanted.memory_request),
        ("limits", wanted.cpu_limit, wanted.memory_limit),
    ):
        amounts = {} if cpu is None else {"cpu": format_millicores(cpu)}
        amounts |= {} if memory is None else {"memory": format_bytes(memory)}
        if amounts:
            yield field, amounts


# ---- carried out ----------------------------------------------------------------------------------------------------


async def resize(kube: Kube, pod: Pod, wanted: Amounts, seconds: float = ANSWER_SECONDS) -> ResizeStatus:
    """Asks for it, if nobody has, and returns the kubelet's answer; WAITING or IN_PROGRESS if it takes longer.

    What was deferred goes on being wanted: the kubelet does it when there is room. Whoever does not want that asks for
    the old amounts. What is infeasible some servers refuse, others store and leave to the kubelet.
    Raises NotFound (no such pod), Forbidden (a quota, a limit range), InvalidObject (another quality of service, or a
    node that cannot), ApiUnavailable.
    """
    for patch in plan(pod, wanted):
        try:
            pod = await kube.patch(
                Pod,
                patch.namespace,
                patch.name,
                patch.patch,
                subresource=patch.subresource,
                patch_kind=patch.patch_kind,
            )
        except Forbidden as error:
            if REFUSED_AS_INFEASIBLE.isdisjoint(error.causes):
                raise
            return ResizeStatus(ResizeState.INFEASIBLE, error.message)
    said = resize_status(pod, wanted)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), contextlib.aclosing(_observed(kube, pod)) as states:
            async for seen in states:
                said = resize_status(seen, wanted)
                if said.state in FINAL:
                    return said
            return ResizeStatus(ResizeState.ENDED)
    return said


async def _observed(kube: Kube, pod: Pod) -> AsyncGenerator[Pod, None]:
    """The pod now and after every change; ends when it is gone. One that has ended keeps its last state."""
    namespace, name = pod.metadata.namespace, pod.metadata.name or ""
    while True:
        try:
            found, version = await kube.list(Pod, namespace, fields={"metadata.name": name})
            if not found or found[0].metadata.uid != pod.metadata.uid:
                return
            yield found[0]
            changes = kube.watch(Pod, version, namespace, fields={"metadata.name": name})
            async with contextlib.aclosing(changes):
                async for kind, changed in changes:
                    if kind == "DELETED":
                        return
                    if isinstance(changed, Pod):
                        yield changed
        except (ApiUnavailable, Expired):
            await asyncio.sleep(_RETRY_SECONDS)
