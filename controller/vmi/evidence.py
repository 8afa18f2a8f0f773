"""What proves that no QEMU of a launcher pod is left, so that the VM may be started again (docs/nodes.md). Pure.

A VMI's `status.activePods` lists the pods that its QEMU may run in. Each stays there until one of these is known:

- the kubelet reported every container terminated, in the pod's status;
- the node's handler found no process of the pod, and took the entry off itself;
- the node is out of service (taint, and not Ready): the administrator's word that the machine is off;
- the Node was deleted, and so was the pod, for longer than a kubelet that still ran would have let the pod live;
- an administrator gave the word for this pod (`hyperctl fence`).

An object that has vanished, a phase, a lease or a clock alone proves nothing.
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
    """What an administrator said of a node."""

    why: str
    seconds: float = inf
    """Since when; a deleted Node's kubelet may still run, and needs its time to end the pods that went with it."""


@dataclass(frozen=True)
class Evidence:
    """What is known beyond the pods' objects."""

    ended: frozenset[str] = frozenset()
    """UIDs of pods that the kubelet reported as ended before their objects went."""
    fences: Mapping[str, Fence] = field(default_factory=dict)
    """By node."""
    vanished: Mapping[str, float] = field(default_factory=dict)
    """Seconds by pod UID since its object was first seen missing."""


def fenced_pods(vmi: VirtualMachineInstance) -> frozenset[str]:
    """UIDs of the pods that an administrator gave the word for."""
    return frozenset(filter(None, (vmi.metadata.annotations or {}).get(names.ANNOTATION_FENCED, "").split(",")))


def unproven(vmi: VirtualMachineInstance, pods: Mapping[str, Pod], known: Evidence) -> dict[str, str]:
    """Nodes by UID of the pods that QEMU may still run in. `pods` are those whose objects are there, by UID."""
    said = fenced_pods(vmi) | known.ended
    grace = pod_grace_seconds(vmi.spec)
    return {
        uid: node
        for uid, node in may_run_qemu(vmi).items()
        if not (
            uid in said
            or (uid in pods and has_ended(pods[uid]))
            or _is_fenced(known.fences.get(node), known.vanished.get(uid), grace)
        )
    }


def may_still_run(pod: Pod, known: Evidence) -> bool:
    """Whether a pod of an earlier VMI has to be waited for: it came to a node, and nothing proves that it has ended."""
    node, uid = pod.spec.nodeName or "", pod.metadata.uid or ""
    return node != "" and not (has_ended(pod) or uid in known.ended or _is_fenced(known.fences.get(node), None, inf))


def _is_fenced(fence: Fence | None, vanished: float | None, grace: float) -> bool:
    if fence is None:
        return False
    return fence.seconds == inf or (vanished is not None and min(fence.seconds, vanished) >= grace)
