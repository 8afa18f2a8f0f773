"""Labels and annotations that are carried along: from a VM's template to its VMI, from a VMI to its launcher pod. Pure.

What an object has from the one above stands in its annotation `hyperlet/carried` (only the keys), so that a key which
is taken out above is taken out below too, and what others have written there stays. Objects made by earlier versions
have no such record: they are given what is new, and lose nothing.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from api import names
from api.k8s.meta import ObjectMeta
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from controller.actions import Json, Patch

READ_AT_START = (
    "cni.projectcalico.org/",
    "io.katacontainers.",
    "k8s.ovn.org/",
    "kubernetes.io/egress-bandwidth",
    "kubernetes.io/ingress-bandwidth",
    "sidecar.istio.io/",
    "traffic.sidecar.istio.io/",
    "v1.multus-cni.io/",
)
"""Beginnings of keys that runtimes, CNI plugins and injectors read once, when the pod is made: a change waits."""
# Annotations that would loosen the pod's confinement, give it networks, or pass it off as somebody else's. They are the
# user's to write on a VMI but not to have on the pod that we create for them.
WITHHELD_ANNOTATIONS = (
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
    "k8s.v1.cni.cncf.io/",
    "io.kubernetes.cri",
    "kubernetes.io/config.",
    "kubectl.kubernetes.io/last-applied-configuration",
    "hyperlet/",
)
OWNED_LABELS = frozenset({names.LABEL_APP, names.LABEL_VM_NAME, names.LABEL_VMI_ID})
"""Written by whoever makes the VMI or pod, whatever stands above; beside all that hyperlet keeps for itself."""
_KINDS = ("labels", "annotations")


@dataclass(frozen=True)
class MetadataChange:
    """What becomes of an object's labels and annotations."""

    metadata: Json
    """A merge patch; empty where nothing changes."""
    waiting: tuple[str, ...] = ()
    """Keys that take effect when the pod is made anew, as `labels[key]` or `annotations[key]`."""


def record(labels: Collection[str], annotations: Collection[str]) -> dict[str, str]:
    """The annotation that remembers which keys were carried; none where none were."""
    known = {"labels": sorted(labels), "annotations": sorted(annotations)}
    kept = {kind: keys for kind, keys in known.items() if keys}
    return {names.ANNOTATION_CARRIED: msgspec.json.encode(kept).decode()} if kept else {}


def _recorded(metadata: ObjectMeta) -> Mapping[str, Collection[str]]:
    """The keys that the annotation remembers; none of one that says nothing that can be understood."""
    text = (metadata.annotations or {}).get(names.ANNOTATION_CARRIED)
    try:
        return msgspec.json.decode(text or "", type=dict[str, list[str]])
    except msgspec.DecodeError:
        return {}


def for_vmi(template: ObjectMeta | None) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and annotations that a VM's template gives its VMI."""
    metadata = template or ObjectMeta()
    return _without(metadata.labels, _is_ours_on_vmi), _without(metadata.annotations, _is_ours_on_vmi)


def for_pod(vmi: VirtualMachineInstance) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and annotations that a VMI gives its pod."""
    metadata: ObjectMeta = vmi.metadata
    return _without(metadata.labels, _is_ours_on_pod), _without(metadata.annotations, _is_withheld)


def to_vmi(template: ObjectMeta | None, vmi: VirtualMachineInstance) -> MetadataChange:
    """What a running VMI's labels and annotations become when those of the template have changed."""
    return _change(for_vmi(template), vmi.metadata, _is_ours_on_vmi)


def to_pod(vmi: VirtualMachineInstance, pod: Pod) -> Iterator[Patch]:
    """The patch of a living pod whose VMI's labels or annotations have changed.

    Through pods/status, the only part of a pod that the controller may write.
    """
    if pod.metadata.deletionTimestamp:
        return
    change = _change(for_pod(vmi), pod.metadata, _is_ours_on_pod)
    if change.metadata:
        body = {"metadata": {"uid": pod.metadata.uid, **change.metadata}}
        yield Patch(Pod, pod.metadata.namespace or "", pod.metadata.name or "", body, subresource="status")


def _without(values: Mapping[str, str] | None, is_left_out: Callable[[str], bool]) -> dict[str, str]:
    return {key: value for key, value in (values or {}).items() if not is_left_out(key)}


def _is_ours_on_vmi(key: str) -> bool:
    return key in names.OWNED_LABELS or key in names.OWNED_ANNOTATIONS or key in OWNED_LABELS


def _is_ours_on_pod(key: str) -> bool:
    return _is_ours_on_vmi(key) or key == names.ANNOTATION_DOMAIN


def _is_withheld(key: str) -> bool:
    return _is_ours_on_pod(key) or key.startswith(WITHHELD_ANNOTATIONS)


def _change(
    wanted: tuple[Mapping[str, str], Mapping[str, str]], has: ObjectMeta, is_ours: Callable[[str], bool]
) -> MetadataChange:
    known = _recorded(has)
    patch: dict[str, dict[str, Any]] = {}
    waiting, kept = list[str](), list[set[str]]()
    for kind, values, present in zip(_KINDS, wanted, (has.labels or {}, has.annotations or {}), strict=True):
        before = set(known.get(kind, ()))
        changed: dict[str, Any] = {key: value for key, value in values.items() if present.get(key) != value}
        changed |= {key: None for key in before - values.keys() if key in present and not is_ours(key)}
        late = {key for key in changed if key.startswith(READ_AT_START)}
        waiting += [f"{kind}[{key}]" for key in sorted(late)]
        kept.append((values.keys() - late) | (before & late))
        if now := {key: value for key, value in changed.items() if key not in late}:
            patch[kind] = now
    if patch:
        patch.setdefault("annotations", {}).update({names.ANNOTATION_CARRIED: None, **record(*kept)})
    return MetadataChange(patch, tuple(waiting))
