"""Image pull errors of the kubelet as condition messages that name volume, image and remedy. Pure.

Reasons and messages come from the kubelet's image manager (pkg/kubelet/images in Kubernetes) and the container runtime.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from api import names
from api.kubevirt.vmi import VirtualMachineInstanceSpec
from api.text import printable

IMAGE_REASONS = names.REASONS_NO_IMAGE | {names.REASON_IMAGE_PULL_BACKOFF}
"""Waiting reasons of a container that are image pull errors."""
LAUNCHER = "the launcher"
MESSAGE_LIMIT = 1024
REASON_SECRET = "FailedToRetrieveImagePullSecret"
"""Reason of the kubelet's Warning Event about a missing pull secret."""
_BACK_OFF = re.compile(r'Back-off pulling image "[^"]*"(?:: (?:[A-Za-z]+: )?)?')
_DENIED = re.compile(r"\b(40[13]|unauthori[sz]ed|authorization failed|access denied|insufficient_scope|denied)\b", re.I)
_REMEDIES = {
    "ErrImageNeverPull": "load the image on the node, or change imagePullPolicy: Never",
    "InvalidImageName": "correct the image reference",
    "SignatureValidationFailed": "sign the image, or change the node's signature policy",
}


class Image(NamedTuple):
    """An image that a launcher pod needs."""

    what: str
    """The field that references it, such as `volume root`."""
    reference: str
    secret: str | None


def images(spec: VirtualMachineInstanceSpec) -> Iterator[Image]:
    """The images that a VMI references: containerDisks and kernelBoot."""
    for volume in spec.volumes or ():
        if disk := volume.containerDisk:
            yield Image(f"volume {volume.name}", disk.image, disk.imagePullSecret)
    firmware = spec.domain.firmware
    container = firmware.kernelBoot.container if firmware and firmware.kernelBoot else None
    if container:
        yield Image("firmware.kernelBoot.container", container.image, container.imagePullSecret)


def error_reason(message: str) -> str:
    """The kubelet's message without its back-off prefix; empty if it contains nothing else."""
    return _BACK_OFF.sub("", message, count=1).strip()


def explained(
    reason: str, message: str, spec: VirtualMachineInstanceSpec, launcher: str, warning: tuple[str, str] | None = None
) -> str:
    """The condition message: field and image, the kubelet's error, the remedy.

    `launcher` is the launcher's own image, `warning` the latest Warning Event about the pod (reason, message).
    """
    found = _mentioned(message, list(images(spec)), launcher)
    # The text comes from a registry and is printed on terminals: replace control characters.
    error = printable(error_reason(message) or message or reason)
    subject = _subject(found)
    remedy = _remedy(reason, error, found, warning)
    sentence = f"{subject}: {error}" if subject else error
    if not remedy:
        return sentence[:MESSAGE_LIMIT]
    return f"{sentence[: MESSAGE_LIMIT - len(remedy) - 2].rstrip(' .;')}; {remedy}"


def _mentioned(message: str, own: Sequence[Image], launcher: str) -> list[Image]:
    """The images that the message names: several volumes may share one; of overlapping references the longest wins."""
    known = [*own, Image(LAUNCHER, launcher, None)]
    mentioned = [each for each in known if each.reference and _names(message, each.reference)]
    longest = max((len(each.reference) for each in mentioned), default=0)
    found = [each for each in mentioned if len(each.reference) == longest]
    return found or (list(own) if len(own) == 1 else [])


def _names(message: str, reference: str) -> bool:
    """Whether the message contains this reference, and not just as part of a longer one.

    Container runtimes normalize references: `docker.io/library/` in front, `:latest` behind.
    """
    return bool(re.search(rf"(?<![\w.-]){re.escape(reference)}(:latest\b)?(?![\w/@-]|[.:]\w)", message))


def _subject(found: Sequence[Image]) -> str:
    return f"{', '.join(each.what for each in found)}: image {found[0].reference}" if found else ""


def _remedy(reason: str, error: str, found: Sequence[Image], warning: tuple[str, str] | None) -> str:
    if warning is not None and warning[0] == REASON_SECRET:
        return warning[1][:300]
    if reason in _REMEDIES:
        return _REMEDIES[reason]
    if not found or not _DENIED.search(error):
        return ""
    if secret := found[0].secret:
        return f"Secret {secret} has no credentials that this registry accepts"
    if found[0].what == LAUNCHER:
        return "add a Secret with the registry's credentials to spec.imagePullSecrets of the KubeVirt object"
    return "set imagePullSecret to a Secret with the registry's credentials"
