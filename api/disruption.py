"""Causes of launcher pod disruptions: eviction, preemption, node shutdown, deletion. Pure.

A guest that powers itself off has succeeded; a guest shut down because its pod was disrupted has not. The launcher's
report does not distinguish the two, so the cause is read from the pod. Used by handler and controller, either of which
may write the final phase.

Source of the conditions: https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions
"""

import re
from typing import NamedTuple

from api import names
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from api.text import printable

ANNOUNCED_REASONS = frozenset({names.REASON_TERMINATED, "ForceOff", "NeverStarted"})
"""Reasons reported by a launcher that terminates because of SIGTERM, not because of the guest."""
REASON_POD_DELETED = "PodDeleted"
REASON_LIVENESS = "LivenessProbeFailed"
REASON_POD_TERMINATED = "PodTerminated"
_BY_KUBELET = "TerminationByKubelet"
_EVENTS = frozenset({"Evicted", "Preempting"})
_WORDS = {
    "EvictionByEvictionAPI": "the launcher pod was evicted (for example by kubectl drain)",
    "PreemptionByScheduler": "the launcher pod was preempted by a pod of higher priority",
    "DeletionByTaintManager": "the launcher pod does not tolerate a taint of its node",
    "DeletionByPodGC": "the node of the launcher pod no longer exists",
    _BY_KUBELET: "the kubelet terminated the launcher pod",
    REASON_POD_DELETED: "the launcher pod was deleted",
}
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")
_LIMIT = 512


class Cause(NamedTuple):
    """Why a pod terminated: reason and message for conditions and Events."""

    reason: str
    message: str


def cause(pod: Pod) -> Cause | None:
    """Why a pod is terminating or has terminated; None if only its launcher reports it."""
    status = pod.status
    target = next((each for each in status.conditions or () if each.type == names.CONDITION_DISRUPTION_TARGET), None)
    if target is not None and target.status == names.TRUE:
        # The kubelet sets its own reason in the status: Evicted, Preempting, Terminated.
        own = _reason(status.reason) if target.reason == _BY_KUBELET else None
        return _announced(
            own or _reason(target.reason) or names.CONDITION_DISRUPTION_TARGET, target.reason, target.message
        )
    if status.phase == "Failed" and _reason(status.reason):
        return _announced(status.reason or "", _BY_KUBELET, status.message)
    if pod.metadata.deletionTimestamp:
        return _announced(REASON_POD_DELETED, REASON_POD_DELETED, None)
    return None


def last_cause(vmi: VirtualMachineInstance, pod: Pod, warning: tuple[str, str] | None = None) -> Cause:
    """Why a pod with terminated containers was stopped; without other evidence, by the kubelet.

    `warning`: reason and message of the latest Warning Event about the pod. If all containers exited with code 0, the
    kubelet drops the eviction from the pod status and reports it in that Event only (seen with 1.36).
    """
    found = cause(pod)
    if found is not None:
        return found
    if warning is not None and warning[0] in _EVENTS:
        return _announced(warning[0], _BY_KUBELET, warning[1])
    if vmi.spec.livenessProbe is not None:
        return Cause(REASON_LIVENESS, "the kubelet terminated the launcher pod: its liveness probe failed")
    return Cause(
        REASON_POD_TERMINATED, "the launcher pod received SIGTERM, although neither the pod nor the VM was deleted"
    )


def _announced(reason: str, kind: str | None, message: str | None) -> Cause:
    words = _WORDS.get(kind or "", "the launcher pod was disrupted")
    detail = printable(message or "", _LIMIT).strip()
    return Cause(reason, f"{words}: {detail}" if detail else words)


def _reason(text: str | None) -> str | None:
    return text if text and _REASON.fullmatch(text) else None
