"""Evictions of launcher pods, according to the VM's evictionStrategy.

As in KubeVirt, an eviction does not stop a protected VM: it is refused with 429, which a drain retries. A VM that can
be migrated is marked in `status.evacuationNodeName`, and the migration controller (with `External`, an external
controller) evacuates it. A PodDisruptionBudget from the controller protects the VM while no gateway is available.
"""

from typing import NamedTuple

from api import conditions, launcher_pods, names
from api.errors import NotFound
from api.k8s.objects import Pod
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from gateway.admission.review import AdmissionRefusal, AdmissionRequest
from kit.kube import Kube

CODE_TOO_MANY_REQUESTS = 429
SUBRESOURCE = "eviction"


class Decision(NamedTuple):
    """The decision on an eviction: allowed if `refusal` is empty."""

    refusal: str = ""
    mark: bool = False
    """Whether to set `status.evacuationNodeName`."""


def decide(pod: Pod, vmi: VirtualMachineInstance, configuration: KubeVirtConfiguration) -> Decision:
    """Whether the pod of a VMI may be evicted. Deschedulers match KubeVirt's messages, so keep their beginning."""
    status, where = vmi.status, f"{vmi.metadata.namespace}/{vmi.metadata.name}"
    over = phase_of(vmi) in names.FINAL_PHASES
    if over or vmi.metadata.deletionTimestamp or pod.metadata.deletionTimestamp or launcher_pods.has_ended(pod):
        return Decision()
    strategy = vmi.spec.evictionStrategy or configuration.evictionStrategy or names.EVICTION_NONE
    migratable = conditions.holds(status.conditions if status else None, names.CONDITION_LIVE_MIGRATABLE)
    if strategy == names.EVICTION_LIVE_MIGRATE and not migratable:
        return Decision(
            f"VMI {where} is configured with an eviction strategy but is not live-migratable: stop the VM, or set its "
            "evictionStrategy to None, to drain its node"
        )
    moved = migratable and strategy in (names.EVICTION_LIVE_MIGRATE, names.EVICTION_LIVE_MIGRATE_IF_POSSIBLE)
    if not moved and strategy != names.EVICTION_EXTERNAL:
        return Decision()
    node = status.nodeName if status else None
    marked = status is not None and status.evacuationNodeName == node
    return Decision(
        f'Eviction triggered evacuation of VMI "{where}"', bool(node) and node == pod.spec.nodeName and not marked
    )


async def refusal(
    kube: Kube, configuration: KubeVirtConfiguration, request: AdmissionRequest
) -> AdmissionRefusal | None:
    """The refusal of an eviction, or None; marks the VMI for evacuation. Raises `api.errors`."""
    name, namespace = request.name or "", request.namespace or ""
    if request.subResource != SUBRESOURCE or not name.startswith(names.LAUNCHER_PREFIX):
        return None
    try:
        pod = await kube.get(Pod, namespace, name)
        origin = launcher_pods.origin(pod)
        if origin is None:
            return None
        vmi = await kube.get(VirtualMachineInstance, namespace, origin.name)
    except NotFound:
        return None
    if vmi.metadata.uid != origin.uid:
        return None
    found = decide(pod, vmi, configuration)
    if found.mark and not request.dryRun:
        body = {"metadata": {"uid": vmi.metadata.uid}, "status": {"evacuationNodeName": pod.spec.nodeName}}
        await kube.patch(VirtualMachineInstance, namespace, origin.name, body)
    return AdmissionRefusal(CODE_TOO_MANY_REQUESTS, "TooManyRequests", found.refusal) if found.refusal else None
