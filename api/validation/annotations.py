"""Annotations with a meaning in KubeVirt, and how hyperlet treats them. The source of docs/annotations.md.

Source: kubevirt.io/api, core/v1/types.go, and pkg/hooks. Other annotations are kept, and copied
to the pod.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from api import names
from api.errors import Fault


class KnownAnnotation(NamedTuple):
    """An annotation; a `name` ending in a slash or dash is a prefix."""

    name: str
    effect: str
    """Its effect in KubeVirt."""
    answer: str
    """How hyperlet treats it: a message for users."""
    harmless: tuple[str, ...] = ()
    """Values that match hyperlet's behaviour; `*` matches every value."""
    warned: bool = False
    """Accepted with a warning instead of refused: the VM runs correctly without it."""


_TEST = "for KubeVirt's own tests"
KNOWN = (
    KnownAnnotation(
        "hooks.kubevirt.io/", "runs hook sidecars, which may change the domain", "hook sidecars are not implemented"
    ),
    KnownAnnotation(
        "kubevirt.io/ignitiondata",
        "passes Ignition data to the guest through fw_cfg",
        "set userData of a cloudInitConfigDrive volume instead",
    ),
    KnownAnnotation(
        "kubevirt.io/placePCIDevicesOnRootComplex",
        "puts PCI devices on the root complex",
        "hyperlet puts devices behind PCI Express root ports: set pciAddress to choose a slot",
        ("false",),
    ),
    KnownAnnotation(
        "kubevirt.io/disablePCIHole64",
        "removes the 64-bit PCI hole",
        "the 64-bit PCI hole is always present",
        ("false",),
    ),
    KnownAnnotation(
        "kubevirt.io/memfd",
        "selects memfd as the backend of guest memory",
        "guest memory is always anonymous memory",
        ("false",),
    ),
    KnownAnnotation(
        "kubevirt.io/libvirt-log-filters",
        "sets libvirt's log filters",
        "read the log of the pod's container `compute`, or query libvirt with `hyperctl virsh`",
    ),
    KnownAnnotation(
        "kubevirt.io/keep-launcher-alive-after-failure",
        "keeps the launcher pod of a failed VM",
        "the launcher pod of a failed VM always terminates: see the VM's status and Events",
        ("false",),
    ),
    KnownAnnotation(
        "kubevirt.io/create-migration-target",
        "makes the VM the target of a migration",
        "live migration is not implemented",
    ),
    KnownAnnotation("kubevirt.io/func-test-", _TEST, "the annotation is reserved for KubeVirt's own tests"),
    KnownAnnotation(
        "kubevirt.io/allow-pod-bridge-network-live-migration",
        "allows live migration of a VM with a bridge on the pod network",
        "no effect: live migration is not implemented",
        warned=True,
    ),
    KnownAnnotation(
        "kubevirt.io/pci-topology-version",
        "keeps PCI addresses across updates",
        "no effect: hyperlet assigns PCI addresses itself",
        warned=True,
    ),
    KnownAnnotation(
        "kubevirt.io/pci-interface-slot-count",
        "keeps PCI addresses across updates",
        "no effect: hyperlet assigns PCI addresses itself",
        warned=True,
    ),
    KnownAnnotation("kubevirt.io/nonroot", "runs the launcher as non-root", "always the case", ("*",)),
    KnownAnnotation(
        "kubevirt.io/image-volume-skip-digest-resolution",
        "accepts artifacts that are not container images",
        "always the case: images are mounted unchanged",
        ("*",),
    ),
    KnownAnnotation(
        "kubevirt.io/immediate-data-volume-creation",
        "creates DataVolumes immediately",
        "DataVolumes are not implemented",
        ("*",),
    ),
    KnownAnnotation(
        "kubectl.kubernetes.io/default-container",
        "selects the container that `kubectl logs` shows",
        "supported",
        ("*",),
    ),
)


def find(key: str) -> KnownAnnotation | None:
    """The entry of an annotation key."""
    for known in KNOWN:
        if key == known.name or (known.name[-1] in "/-" and key.startswith(known.name)):
            return known
    return None


def _asking(annotations: Mapping[str, str] | None) -> Iterator[tuple[str, KnownAnnotation]]:
    """Annotations whose effect is not implemented."""
    for key, value in (annotations or {}).items():
        known = find(key)
        if known is not None and "*" not in known.harmless and value not in known.harmless:
            yield key, known


def annotation_faults(annotations: Mapping[str, str] | None, path: str) -> Iterator[Fault]:
    """A Fault for every refused annotation. `path` is the path of the annotations."""
    for key, known in _asking(annotations):
        if not known.warned:
            yield Fault(f"{path}.{key[:120]}", names.FAULT_NOT_SUPPORTED, f"not supported: {known.answer}")


def annotation_warnings(annotations: Mapping[str, str] | None, path: str) -> Iterator[str]:
    """A warning for every annotation that is accepted without effect."""
    for key, known in _asking(annotations):
        if known.warned:
            yield f"{path}.{key[:120]}: {known.answer}"


def table() -> str:
    """The table in docs/annotations.md."""
    rows = ["| annotation | KubeVirt | hyperlet |", "|---|---|---|"]
    for known in KNOWN:
        name = f"{known.name}…" if known.name[-1] in "/-" else known.name
        if "*" in known.harmless:
            here = known.answer
        else:
            here = ("warning: " if known.warned else "refused: ") + known.answer
            here += "".join(f"; `{value}` is accepted" for value in known.harmless)
        rows.append(f"| `{name}` | {known.effect} | {here} |")
    return "\n".join(rows) + "\n"
