"""Evictions of launcher pods: what a VM's evictionStrategy makes of `kubectl drain` and of everything that evicts.

The decision is the published one: a VM that asked for protection is not ended by an eviction. The API server answers
429, which a drain takes for "try again in a while"; a VM that can be moved is marked in `status.evacuationNodeName`,
and whoever moves VMs (the migration controller; with `External` a controller of the installation's own) does so. A
PodDisruptionBudget that the controller makes says the same while no gateway answers.
"""

from typing import NamedTuple

from api import launcher_pods, names
from api.errors import NotFound
from api.k8s.objects import Pod
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.vmi import VirtualMachineInstance
from gateway.admission.review import AdmissionRefusal, AdmissionRequest
from kit.kube import Kube

CODE_TOO_MANY_REQUESTS = 429
SUBRESOURCE = "eviction"


class Decision(NamedTuple):
    """What becomes of an eviction: nothing is refused where `refusal` is empty."""

    refusal: str = ""
    mark: bool = False
    """The VMI is to be moved off its node."""


def decide(pod: Pod, vmi: VirtualMachineInstance, configuration: KubeVirtConfiguration) -> Decision:
    """Whether the pod of a VMI may be evicted. Deschedulers know the published words that refusals begin with."""
    status, where = vmi.status, f"{vmi.metadata.namespace}/{vmi.metadata.name}"
    over = status is not None and status.phase in names.FINAL_PHASES
    if over or vmi.metadata.deletionTimestamp or pod.metadata.deletionTimestamp or launcher_pods.has_ended(pod):
        return Decision()
    strategy = vmi.spec.evictionStrategy or configuration.evictionStrategy or names.EVICTION_NONE
    migratable = any(
        each.type == names.CONDITION_LIVE_MIGRATABLE and each.status == names.TRUE
        for each in (status.conditions if status else None) or ()
    )
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
    """Why an eviction is refused, if it is; the VMI is marked where it is to be moved. Raises `api.errors`."""
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
