"""Propagation of labels and annotations: from a VM's template to its VMI, from a VMI to its launcher pod. Pure.

The annotation `hyperlet/carried` records the propagated keys, so that a key removed from the source is removed from
the target, while keys written there by others stay. Objects of earlier versions have no record: new keys are added to
them, and none is removed.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from api import names
from api.k8s.meta import Json, ObjectMeta
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from controller.actions import Patch

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
"""Prefixes of keys that runtimes, CNI plugins and injectors read only at pod creation: changes wait for a restart."""
# Annotations that would weaken the pod's isolation, attach networks or fake its origin. Users may set them on a VMI,
# but they are not propagated to its pod.
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
"""Labels that are set at the creation of a VMI or pod and never propagated, besides names.OWNED_LABELS."""
_KINDS = ("labels", "annotations")


@dataclass(frozen=True)
class MetadataChange:
    """Changes of an object's labels and annotations."""

    metadata: Json
    """A merge patch of metadata; empty if nothing changes."""
    waiting: tuple[str, ...] = ()
    """Keys that take effect when the pod is recreated, as `labels[key]` or `annotations[key]`."""


def record(labels: Collection[str], annotations: Collection[str]) -> dict[str, str]:
    """The annotation that records the propagated keys; empty if there are none."""
    known = {"labels": sorted(labels), "annotations": sorted(annotations)}
    kept = {kind: keys for kind, keys in known.items() if keys}
    return {names.ANNOTATION_CARRIED: msgspec.json.encode(kept).decode()} if kept else {}


def _recorded(metadata: ObjectMeta) -> Mapping[str, Collection[str]]:
    """The keys recorded in the annotation, by kind; empty if it cannot be decoded."""
    text = (metadata.annotations or {}).get(names.ANNOTATION_CARRIED)
    try:
        return msgspec.json.decode(text or "", type=dict[str, list[str]])
    except msgspec.DecodeError:
        return {}


def for_vmi(template: ObjectMeta | None) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and annotations that a VM's template propagates to its VMI."""
    metadata = template or ObjectMeta()
    return _without(metadata.labels, _is_ours_on_vmi), _without(metadata.annotations, _is_ours_on_vmi)


def for_pod(vmi: VirtualMachineInstance) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and annotations that a VMI propagates to its pod."""
    metadata: ObjectMeta = vmi.metadata
    return _without(metadata.labels, _is_ours_on_pod), _without(metadata.annotations, _is_withheld)


def to_vmi(template: ObjectMeta | None, vmi: VirtualMachineInstance) -> MetadataChange:
    """Changes of a running VMI's labels and annotations after those of the template have changed."""
    return _change(for_vmi(template), vmi.metadata, _is_ours_on_vmi)


def to_pod(vmi: VirtualMachineInstance, pod: Pod) -> Iterator[Patch]:
    """The patch of a running pod after labels or annotations of its VMI have changed.

    Sent to pods/status, the only part of a pod that the controller may write.
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
