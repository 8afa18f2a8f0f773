"""What a launcher pod's status tells: whether it is bound, runs, has ended and how, and what keeps it from running.

Everything in a pod's status that a launcher can influence (the termination message) is untrusted: bounded and checked.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from api import disruption, names
from api.k8s.objects import Container, ContainerStateTerminated, ContainerStateWaiting, PersistentVolumeClaim, Pod
from api.kubevirt.vmi import VirtualMachineInstance, VirtualMachineInstanceSpec
from api.launcher_pods import END_PHASES, compute
from controller import conditions
from controller.launcher_pod import image_errors
from controller.launcher_pod.image_errors import IMAGE_REASONS

STILL_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
REASON_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")
REASON_WAITING_FOR_VOLUME = "WaitingForVolumeBinding"
MESSAGE_LIMIT = 1024
_LOST = frozenset({"Unknown", "ContainerStatusUnknown"})
"""What the runtime, and kubelet, say of a container that they find gone."""


_OWN_FAULTS = frozenset({"OOMKilled", "Crashed", "Panicked", "Destroyed"})
"""Ends that are the VM's own, whatever else was about to happen to its pod."""


class VmEnd(NamedTuple):
    """How a VM ended."""

    phase: str
    reason: str
    message: str


class _TerminationMessage(msgspec.Struct, gc=False):
    """The termination message that the supervisor writes."""

    phase: str = ""
    reason: str = ""
    message: str = ""


def image(pod: Pod) -> str | None:
    """The launcher's image as the pod asks for it."""
    containers: Iterable[Container] = pod.spec.containers
    return next((container.image for container in containers if container.name == names.COMPUTE_CONTAINER), None)


def end_of(pod: Pod | None) -> VmEnd:
    """How the VM ended, as far as its pod tells."""
    if pod is None:
        return VmEnd(names.PHASE_FAILED, names.REASON_POD_NOT_EXISTS, "The launcher pod is gone")
    status = compute(pod)
    terminated = status.state.terminated if status and status.state else None
    if terminated is None:
        words = ": ".join(filter(None, (pod.status.reason, pod.status.message))) or "the pod has ended"
        phase = names.PHASE_SUCCEEDED if pod.status.phase == "Succeeded" else names.PHASE_FAILED
        return VmEnd(phase, _reason(pod.status.reason) or "PodEnded", words[:MESSAGE_LIMIT])
    return _end_of_container(pod, terminated)


def disruption_cause(
    end: VmEnd, vmi: VirtualMachineInstance, pod: Pod | None, warning: tuple[str, str] | None = None
) -> VmEnd:
    """The end of a VMI that was not to end: where its pod was told to end, it has failed, and the cause is told.

    `warning`: reason and message of the latest Warning Event about the pod.
    """
    if pod is None or end.reason in _OWN_FAULTS:
        return end
    told = end.reason in disruption.ANNOUNCED_REASONS
    if not told and (end.phase != names.PHASE_FAILED or disruption.cause(pod) is None):
        return end  # the guest powered off of itself, or nothing but the launcher failed
    why = disruption.last_cause(vmi, pod, warning)
    return VmEnd(names.PHASE_FAILED, why.reason, f"{why.message}; {end.message}"[:MESSAGE_LIMIT])


def _end_of_container(pod: Pod, terminated: ContainerStateTerminated) -> VmEnd:
    if terminated.reason == "OOMKilled":
        return VmEnd(names.PHASE_FAILED, "OOMKilled", "The launcher was killed: it used more memory than its limit")
    said = _termination_message(terminated.message)
    if said is not None:
        return said
    phase = names.PHASE_SUCCEEDED if terminated.exitCode == 0 else names.PHASE_FAILED
    words = f"The launcher ended with exit code {terminated.exitCode}"
    if terminated.reason in _LOST:
        words = "How the launcher ended is not known: its node was restarted or lost its power"
    if pod.status.reason:
        words += f"; {pod.status.reason}: {pod.status.message or ''}"
    reason = _reason(pod.status.reason) or _reason(terminated.reason) or "LauncherEnded"
    return VmEnd(phase, reason, words[:MESSAGE_LIMIT])


def _termination_message(message: str | None) -> VmEnd | None:
    try:
        said = msgspec.json.decode((message or "").encode(), type=_TerminationMessage)
    except msgspec.DecodeError:
        return None
    if said.phase not in END_PHASES:
        return None
    return VmEnd(said.phase, _reason(said.reason) or "LauncherEnded", _clean(said.message))


def _clean(text: str) -> str:
    """Without the control characters that would do things to the terminal of whoever describes the VM."""
    return "".join(character if character.isprintable() else " " for character in text[:MESSAGE_LIMIT]).strip()


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
    """The conditions that say why the pod does not run yet.

    `warning` is the latest Warning Event about the pod (reason, message), `lasting` whether the pod has been on its
    node for so long that the Event counts by itself, `known` the VMI's Synchronized condition.
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
        reason, message = REASON_WAITING_FOR_VOLUME, f"waiting for the volume of {', '.join(unbound)}: {message}"
    return conditions.make(names.CONDITION_POD_SCHEDULED, False, reason, message)


def _no_image(
    waiting: ContainerStateWaiting,
    known: Any,
    spec: VirtualMachineInstanceSpec,
    launcher_image: str,
    warning: tuple[str, str] | None,
) -> dict[str, Any]:
    """The kubelet swings between ErrImagePull and ImagePullBackOff, which may come without the cause: keep both."""
    reason, message = waiting.reason or "", waiting.message or ""
    pulling = (names.REASON_ERR_IMAGE_PULL, names.REASON_IMAGE_PULL_BACKOFF)
    sentence = image_errors.explained(reason, message, spec, launcher_image, warning)
    if known is not None and known.reason in pulling and reason in pulling:
        if known.reason == names.REASON_IMAGE_PULL_BACKOFF:
            reason = known.reason
        if not image_errors.error_reason(message):
            sentence = known.message or sentence
    return conditions.make(names.CONDITION_SYNCHRONIZED, False, reason, sentence)
