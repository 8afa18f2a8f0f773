"""In-place resize of a running launcher pod's requests and limits.

`plan` returns the patch (subresource `resize`, stable since Kubernetes 1.35, enabled by default since 1.33),
`resize_status` the kubelet's progress; both are pure. `resize` sends the patch and waits for the result.
Sources: https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/, KEP-1287.
"""

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

from api import conditions, names
from api.errors import ApiUnavailable, Expired, Forbidden
from api.k8s.meta import Json, Quantity, format_bytes, format_millicores, quantity_bytes, quantity_millicores
from api.k8s.objects import ContainerResources, Pod, StatusCondition
from api.launcher_pods import END_PHASES, compute
from controller.actions import Patch
from kit.kube import Kube

ANSWER_SECONDS = 30.0
"""Timeout for the kubelet's answer. A feasible resize takes less than a second."""
PENDING, IN_PROGRESS = "PodResizePending", "PodResizeInProgress"
REFUSED_AS_INFEASIBLE = frozenset({"NodeCapacity", "UnsupportedPlatform"})
"""Status causes with which the API server (since Kubernetes 1.36) refuses a resize that the node can never do."""
_RETRY_SECONDS = 1.0
POLICY = tuple({"resourceName": resource, "restartPolicy": "NotRequired"} for resource in ("cpu", "memory"))
"""The container's resizePolicy: never restart the container."""


@dataclass(frozen=True)
class Amounts:
    """Requests and limits of the compute container: CPU in millicores, memory in bytes. None: unchanged.

    The API server refuses a change of the pod's QoS class, and the removal of a request or limit.
    """

    cpu_request: int | None = None
    cpu_limit: int | None = None
    memory_request: int | None = None
    memory_limit: int | None = None

    def covers(self, found: "Amounts") -> bool:
        """Whether `found` equals all amounts that are set here."""
        return all(getattr(self, each.name) in (None, getattr(found, each.name)) for each in fields(self))


class ResizeState(enum.Enum):
    """Progress of a resize."""

    UNASKED = "the pod's spec has other amounts"
    WAITING = "the kubelet has not processed the resize yet"
    IN_PROGRESS = "the kubelet is resizing the container"
    DEFERRED = "the node has no capacity now; the kubelet retries when there is"
    INFEASIBLE = "the node can never fulfil the resize"
    ACTUATED = "the container has been resized"
    ENDED = "the pod has terminated or is terminating"


FINAL = frozenset(
    {ResizeState.UNASKED, ResizeState.DEFERRED, ResizeState.INFEASIBLE, ResizeState.ACTUATED, ResizeState.ENDED}
)
"""States in which `resize` returns. UNASKED: the spec was changed to other amounts meanwhile."""


class ResizeStatus(NamedTuple):
    """State of a resize; `message` is the kubelet's, or empty."""

    state: ResizeState
    message: str = ""


# ---- pure ------------------------------------------------------------------------------------------------------------


def requested_amounts(pod: Pod) -> Amounts:
    """The amounts in the compute container's spec."""
    found = (each.resources for each in pod.spec.containers if each.name == names.COMPUTE_CONTAINER)
    return _amounts(next(found, None))


def actual_amounts(pod: Pod) -> Amounts:
    """The amounts in effect, as the kubelet reports them from the container runtime."""
    status = compute(pod)
    return _amounts(status.resources if status else None)


def plan(pod: Pod, wanted: Amounts) -> list[Patch]:
    """The patch that requests `wanted`; none if the spec has these amounts already or the pod has ended."""
    if _over(pod) or wanted.covers(requested_amounts(pod)):
        return []
    container: Json = {"name": names.COMPUTE_CONTAINER, "resources": dict(_resources(wanted))}
    body = {"metadata": {"uid": pod.metadata.uid}, "spec": {"containers": [container]}}
    meta = pod.metadata
    return [Patch(Pod, meta.namespace or "", meta.name or "", body, subresource="resize", patch_kind="strategic")]


def resize_status(pod: Pod, wanted: Amounts) -> ResizeStatus:
    """The kubelet's progress with `wanted`."""
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
    """The condition if it is True and observed the current generation."""
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


# ---- execution -------------------------------------------------------------------------------------------------------


async def resize(kube: Kube, pod: Pod, wanted: Amounts, seconds: float = ANSWER_SECONDS) -> ResizeStatus:
    """Requests the resize unless the spec has it already, and returns the result; WAITING or IN_PROGRESS on timeout.

    A deferred resize stays requested: the kubelet does it when there is capacity. To cancel it, request the old
    amounts. An infeasible resize is refused by some API servers, and stored for the kubelet to refuse by others.
    Raises NotFound (no such pod), Forbidden (quota, LimitRange), InvalidObject (QoS class would change, or the node
    cannot resize), ApiUnavailable.
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
    status = resize_status(pod, wanted)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), contextlib.aclosing(_observed(kube, pod)) as states:
            async for seen in states:
                status = resize_status(seen, wanted)
                if status.state in FINAL:
                    return status
            return ResizeStatus(ResizeState.ENDED)
    return status


async def _observed(kube: Kube, pod: Pod) -> AsyncGenerator[Pod, None]:
    """Yields the pod now and after every change; ends when it is deleted."""
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
