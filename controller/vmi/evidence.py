"""Evidence that QEMU of a launcher pod has ended, so that the VM may be started again (docs/nodes.md). Pure.

A VMI's `status.activePods` lists the pods that its QEMU may run in. An entry stays until one of these is known:

- the kubelet reported every container of the pod terminated;
- the node's handler found no process of the pod and removed the entry;
- the node is out of service (tainted and not Ready): an administrator states that the machine is off;
- Node and Pod have been deleted for longer than the grace period that a running kubelet would give the pod;
- an administrator fenced this pod (`hyperctl fence`).

A deleted object, a phase, a lease or elapsed time alone is not evidence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from api import names
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from api.launcher_pods import has_ended, may_run_qemu
from controller.launcher_pod.pod import pod_grace_seconds


class Fence(NamedTuple):
    """Fencing of a node by an administrator: tainted out-of-service, or deleted."""

    why: str
    seconds: float = inf
    """Time since a Node was deleted: its kubelet may still run, and needs the grace period to end the deleted pods."""


@dataclass(frozen=True)
class Evidence:
    """Evidence besides the existing Pod objects."""

    ended: frozenset[str] = frozenset()
    """UIDs of pods that the kubelet reported as terminated before their objects were deleted."""
    fences: Mapping[str, Fence] = field(default_factory=dict)
    """By node name."""
    vanished: Mapping[str, float] = field(default_factory=dict)
    """Seconds since the Pod was first found missing, by pod UID."""


def fenced_pods(vmi: VirtualMachineInstance) -> frozenset[str]:
    """UIDs of the pods that an administrator fenced, from the VMI's annotation."""
    return frozenset(filter(None, (vmi.metadata.annotations or {}).get(names.ANNOTATION_FENCED, "").split(",")))


def unproven(vmi: VirtualMachineInstance, pods: Mapping[str, Pod], known: Evidence) -> dict[str, str]:
    """Node names, by pod UID, of the pods whose QEMU may still be running. `pods`: the existing Pods, by UID."""
    ended = fenced_pods(vmi) | known.ended
    grace = pod_grace_seconds(vmi.spec)
    return {
        uid: node
        for uid, node in may_run_qemu(vmi).items()
        if not (
            uid in ended
            or (uid in pods and has_ended(pods[uid]))
            or _is_fenced(known.fences.get(node), known.vanished.get(uid), grace)
        )
    }


def may_still_run(pod: Pod, known: Evidence) -> bool:
    """Whether a pod of an earlier VMI has to be waited for: it was bound, and nothing proves that it has ended."""
    node, uid = pod.spec.nodeName or "", pod.metadata.uid or ""
    return node != "" and not (has_ended(pod) or uid in known.ended or _is_fenced(known.fences.get(node), None, inf))


def _is_fenced(fence: Fence | None, vanished: float | None, grace: float) -> bool:
    if fence is None:
        return False
    return fence.seconds == inf or (vanished is not None and min(fence.seconds, vanished) >= grace)
