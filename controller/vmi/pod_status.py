"""Interpretation of a launcher pod's status: how the VM ended, and what prevents the pod from starting. Pure.

What a launcher controls in the status (the termination message) is untrusted: it is bounded and validated.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from api import conditions, disruption, names
from api.k8s.objects import Container, ContainerStateTerminated, ContainerStateWaiting, PersistentVolumeClaim, Pod
from api.kubevirt.vmi import VirtualMachineInstance, VirtualMachineInstanceSpec
from api.launcher_pods import END_PHASES, compute
from api.text import printable
from controller.launcher_pod import image_errors
from controller.launcher_pod.image_errors import IMAGE_REASONS

STILL_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
REASON_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")
REASON_WAITING_FOR_VOLUME = "WaitingForVolumeBinding"
MESSAGE_LIMIT = 1024
_LOST = frozenset({"Unknown", "ContainerStatusUnknown"})
"""Termination reasons of the container runtime and the kubelet for a container that they no longer find."""


_OWN_FAULTS = frozenset({"OOMKilled", "Crashed", "Panicked", "Destroyed"})
"""Reasons that the VM itself caused, even if its pod was being evicted or deleted at the same time."""


class VmEnd(NamedTuple):
    """Final phase, reason and message of a VMI."""

    phase: str
    reason: str
    message: str


class _TerminationMessage(msgspec.Struct, gc=False):
    """The termination message that the launcher's supervisor writes, JSON."""

    phase: str = ""
    reason: str = ""
    message: str = ""


def image(pod: Pod) -> str | None:
    """The image in the spec of the pod's compute container."""
    containers: Iterable[Container] = pod.spec.containers
    return next((container.image for container in containers if container.name == names.COMPUTE_CONTAINER), None)


def end_of(pod: Pod | None) -> VmEnd:
    """How the VM ended, according to its pod's status."""
    if pod is None:
        return VmEnd(names.PHASE_FAILED, names.REASON_POD_NOT_EXISTS, "The launcher pod was deleted")
    status = compute(pod)
    terminated = status.state.terminated if status and status.state else None
    if terminated is None:
        message = ": ".join(filter(None, (pod.status.reason, pod.status.message))) or "the pod has terminated"
        phase = names.PHASE_SUCCEEDED if pod.status.phase == "Succeeded" else names.PHASE_FAILED
        return VmEnd(phase, _reason(pod.status.reason) or "PodEnded", message[:MESSAGE_LIMIT])
    return _end_of_container(pod, terminated)


def disruption_cause(
    end: VmEnd, vmi: VirtualMachineInstance, pod: Pod | None, warning: tuple[str, str] | None = None
) -> VmEnd:
    """`end`, or a failure with the disruption as its cause if the pod was evicted, preempted, deleted or drained.

    `warning`: reason and message of the latest Warning Event about the pod.
    """
    if pod is None or end.reason in _OWN_FAULTS:
        return end
    announced = end.reason in disruption.ANNOUNCED_REASONS
    if not announced and (end.phase != names.PHASE_FAILED or disruption.cause(pod) is None):
        return end  # the guest powered off by itself, or the launcher failed without a disruption
    why = disruption.last_cause(vmi, pod, warning)
    return VmEnd(names.PHASE_FAILED, why.reason, f"{why.message}; {end.message}"[:MESSAGE_LIMIT])


def _end_of_container(pod: Pod, terminated: ContainerStateTerminated) -> VmEnd:
    if terminated.reason == "OOMKilled":
        return VmEnd(names.PHASE_FAILED, "OOMKilled", "The launcher was OOM-killed: it exceeded its memory limit")
    reported = _termination_message(terminated.message)
    if reported is not None:
        return reported
    phase = names.PHASE_SUCCEEDED if terminated.exitCode == 0 else names.PHASE_FAILED
    message = f"The launcher exited with code {terminated.exitCode}"
    if terminated.reason in _LOST:
        message = "The launcher's exit status is unknown: its node was restarted or lost power"
    if pod.status.reason:
        message += f"; {pod.status.reason}: {pod.status.message or ''}"
    reason = _reason(pod.status.reason) or _reason(terminated.reason) or "LauncherEnded"
    return VmEnd(phase, reason, message[:MESSAGE_LIMIT])


def _termination_message(message: str | None) -> VmEnd | None:
    try:
        reported = msgspec.json.decode((message or "").encode(), type=_TerminationMessage)
    except msgspec.DecodeError:
        return None
    if reported.phase not in END_PHASES:
        return None
    return VmEnd(
        reported.phase, _reason(reported.reason) or "LauncherEnded", printable(reported.message, MESSAGE_LIMIT).strip()
    )


def _reason(text: str | None) -> str | None:
    return text if text and REASON_PATTERN.fullmatch(text) else None


def startup_problems(
    pod: Pod,
    spec: VirtualMachineInstanceSpec,
    claims: Mapping[str, PersistentVolumeClaim],
    warning: tuple[str, str] | None,
    lasting: bool,
    known: Any,
) -> list[dict[str, Any]]:
    """The conditions that explain why the pod is not running yet.

    `warning` is the latest Warning Event about the pod (reason, message), `lasting` whether the pod has been bound for
    WARNING_SECONDS, so that the Event is reported, `known` the VMI's Synchronized condition.
    """
    scheduled = conditions.find(pod.status.conditions, names.CONDITION_POD_SCHEDULED)
    if scheduled is not None and scheduled.status == names.FALSE:
        return [_unscheduled(scheduled, claims)]
    status = compute(pod)
    waiting = status.state.waiting if status and status.state else None
    if waiting is not None and (waiting.reason or "") not in STILL_STARTING:
        if waiting.reason in IMAGE_REASONS:
            return [_no_image(waiting, known, spec, image(pod) or "", warning)]
        reason = _reason(waiting.reason) or "ContainerWaiting"
        return [conditions.make(names.CONDITION_SYNCHRONIZED, False, reason, waiting.message or "")]
    if warning is not None and lasting:
        return [conditions.make(names.CONDITION_SYNCHRONIZED, False, _reason(warning[0]) or "PodWarning", warning[1])]
    return []


def _unscheduled(scheduled: Any, claims: Mapping[str, PersistentVolumeClaim]) -> dict[str, Any]:
    unbound = [name for name, claim in claims.items() if claim.status.phase != "Bound"]
    reason = scheduled.reason or names.REASON_UNSCHEDULABLE
    message = scheduled.message or "no node fits"
    if unbound:
        reason = REASON_WAITING_FOR_VOLUME
        message = f"waiting for PersistentVolumeClaim {', '.join(unbound)} to be bound: {message}"
    return conditions.make(names.CONDITION_POD_SCHEDULED, False, reason, message)


def _no_image(
    waiting: ContainerStateWaiting,
    known: Any,
    spec: VirtualMachineInstanceSpec,
    launcher_image: str,
    warning: tuple[str, str] | None,
) -> dict[str, Any]:
    """The kubelet alternates between ErrImagePull and ImagePullBackOff; the latter may lack the cause: keep it."""
    reason, message = waiting.reason or "", waiting.message or ""
    pulling = (names.REASON_ERR_IMAGE_PULL, names.REASON_IMAGE_PULL_BACKOFF)
    sentence = image_errors.explained(reason, message, spec, launcher_image, warning)
    if known is not None and known.reason in pulling and reason in pulling:
        if known.reason == names.REASON_IMAGE_PULL_BACKOFF:
            reason = known.reason
        if not image_errors.error_reason(message):
            sentence = known.message or sentence
    return conditions.make(names.CONDITION_SYNCHRONIZED, False, reason, sentence)
