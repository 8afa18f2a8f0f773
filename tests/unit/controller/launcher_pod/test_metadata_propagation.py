"""Propagation of labels and annotations from template to VMI and pod: added, changed, removed, withheld."""

from typing import Any

import msgspec
import pytest

from api import names
from api.k8s.objects import Pod
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance
from controller.actions import Create, Patch
from controller.installation.settings import ControllerSettings
from controller.launcher_pod.metadata_propagation import READ_AT_START
from controller.launcher_pod.pod import launcher_pod
from controller.vm.plan import ObservedVm, plan
from controller.vmi import plan as vmi_plan
from tests.fakes.patches import merge
from tests.unit.controller.objects import NOW, pod, vm, vmi

Json = dict[str, Any]
BEFORE: Json = {"labels": {"app": "web", "tier": "front"}, "annotations": {"team": "blue", "note": "x"}}


def templated(metadata: Json, generation: int = 2, spec: Json | None = None) -> VirtualMachine:
    document = msgspec.to_builtins(vm(generation=generation, spec=spec))
    document["spec"]["template"]["metadata"] = metadata
    return msgspec.convert(document, VirtualMachine)


def started(metadata: Json, phase: str = "Running", **more: Json) -> VirtualMachineInstance:
    """The VMI that the controller creates from a template, with metadata added by others."""
    *_, create = [each for each in plan(ObservedVm(vm=templated(metadata, 1), now=NOW)) if isinstance(each, Create)]
    document = merge(msgspec.to_builtins(vmi(phase, owner="vm-uid")), {"metadata": more})
    for field in ("labels", "annotations"):
        given = create.obj["metadata"].get(field) or {}
        document["metadata"][field] = {**given, **(document["metadata"].get(field) or {})}
    return msgspec.convert({**document, "spec": create.obj["spec"]}, VirtualMachineInstance)


def see(machine: VirtualMachine, instance: VirtualMachineInstance) -> list[Any]:
    return plan(ObservedVm(vm=machine, vmi=instance, now=NOW))


def carried(actions: list[Any]) -> Json | None:
    """The patch of the VMI."""
    found = [each for each in actions if isinstance(each, Patch) and each.kind is VirtualMachineInstance]
    assert len(found) <= 1
    return found[0].patch if found else None


def patched(instance: VirtualMachineInstance, patch: Json) -> VirtualMachineInstance:
    return msgspec.convert(merge(msgspec.to_builtins(instance), patch), VirtualMachineInstance)


def own(metadata: Any, field: str) -> Json:
    ours = names.OWNED_ANNOTATIONS | names.OWNED_LABELS | {names.LABEL_VM_NAME}
    return {key: value for key, value in (getattr(metadata, field) or {}).items() if key not in ours}


CHANGES = [
    ({**BEFORE, "labels": {"app": "web", "tier": "front", "new": "1"}}, "set"),
    ({**BEFORE, "labels": {"app": "other", "tier": "front"}}, "changed"),
    ({**BEFORE, "labels": {"app": "web"}}, "taken out"),
    ({"labels": {"app": "web"}, "annotations": {"note": "y"}}, "both"),
    ({}, "all taken out"),
]


@pytest.mark.parametrize("after, _what", CHANGES, ids=[what for _, what in CHANGES])
def test_changed_template_metadata_is_propagated_to_running_vmi(after: Json, _what: str) -> None:
    running = started(BEFORE, labels={"others": "label"}, annotations={"others": "note"})
    patch = carried(see(templated(after), running))
    assert patch is not None and "spec" not in patch
    now = patched(running, patch)
    for field, theirs in (("labels", {"others": "label"}), ("annotations", {"others": "note"})):
        assert own(now.metadata, field) == {**after.get(field, {}), **theirs}
    settled = see(templated(after), now)
    assert carried(settled) is None
    (told,) = [each.patch["status"] for each in settled if isinstance(each, Patch)]
    assert told["observedGeneration"] == 2
    assert names.CONDITION_RESTART_REQUIRED not in [each["type"] for each in told["conditions"]]


def test_owned_keys_are_neither_propagated_nor_removed() -> None:
    running = started(BEFORE, labels={names.LABEL_NODE_NAME: "node1"})
    wanted = {"labels": {**BEFORE["labels"], names.LABEL_NODE_NAME: "node2", names.LABEL_VM_NAME: "another"},
              "annotations": {**BEFORE["annotations"], names.ANNOTATION_TEMPLATE: "x"}}  # fmt: skip
    assert carried(see(templated(wanted), running)) is None
    *_, create = [each for each in plan(ObservedVm(vm=templated(wanted), now=NOW)) if isinstance(each, Create)]
    assert names.LABEL_NODE_NAME not in create.obj["metadata"]["labels"]
    assert create.obj["metadata"]["labels"][names.LABEL_VM_NAME] == "web"


def test_vmi_of_earlier_version_gets_new_keys_and_loses_none() -> None:
    old = started(BEFORE)
    annotations = {key: value for key, value in (old.metadata.annotations or {}).items()
                   if key != names.ANNOTATION_CARRIED}  # fmt: skip
    old = patched(old, {"metadata": {"annotations": {names.ANNOTATION_CARRIED: None, **annotations}}})
    patch = carried(see(templated({"labels": {"app": "web", "new": "1"}}), old))
    assert patch is not None
    now = patched(old, patch)
    assert own(now.metadata, "labels") == {**BEFORE["labels"], "new": "1"}
    patch = carried(see(templated({"labels": {"app": "web"}}, 3), now))
    assert patch is not None and patch["metadata"]["labels"] == {"new": None}


@pytest.mark.parametrize("broken", ["", "no JSON", "[]", '{"labels": "app"}', '{"labels": [1]}'])
def test_invalid_record_removes_no_keys(broken: str) -> None:
    running = started(BEFORE, annotations={names.ANNOTATION_CARRIED: broken})
    assert carried(see(templated({}), running)) is None


@pytest.mark.parametrize("prefix", READ_AT_START)
def test_keys_read_at_pod_creation_require_restart(prefix: str) -> None:
    key = prefix if not prefix.endswith(("/", ".")) else f"{prefix}x"
    running = started(BEFORE)
    after = {**BEFORE, "annotations": {**BEFORE["annotations"], key: "10M"}, "labels": {"app": "new", "tier": "front"}}
    patch = carried(see(templated(after), running))
    assert patch is not None and key not in patch["metadata"].get("annotations", {})
    now = patched(running, patch)
    assert own(now.metadata, "labels") == after["labels"]
    (told,) = [each.patch["status"] for each in see(templated(after), now) if isinstance(each, Patch)]
    (asked,) = [each for each in told["conditions"] if each["type"] == names.CONDITION_RESTART_REQUIRED]
    assert f"metadata.annotations[{key}]" in asked["message"]
    # Such a key is read at the start only, so removing it from a running VM waits as well.
    with_it = started(after)
    patch = carried(see(templated(BEFORE), with_it))
    assert patch is not None and patch["metadata"]["labels"] == {"app": "web"}
    assert key not in patch["metadata"].get("annotations", {})


# ---- the pod


def pod_of(instance: VirtualMachineInstance, **more: Json) -> Pod:
    made = launcher_pod(instance, ControllerSettings(), {})
    document = merge(msgspec.to_builtins(pod("running", gate="True")), {"metadata": more})
    for field in ("labels", "annotations"):
        document["metadata"][field] = {**made["metadata"][field], **(document["metadata"].get(field) or {})}
    return msgspec.convert(document, Pod)


def pod_patch(instance: VirtualMachineInstance, launcher: Pod) -> Json | None:
    found = [each for each in vmi_plan.plan(vmi_plan.ObservedVmi(vmi=instance, now=NOW, pod=launcher))
             if isinstance(each, Patch) and each.kind is Pod]  # fmt: skip
    assert len(found) <= 1 and all(each.subresource == "status" for each in found)
    return found[0].patch if found else None


def running_with(metadata: Json) -> VirtualMachineInstance:
    return started(metadata, labels={names.LABEL_NODE_NAME: "node1"})


@pytest.mark.parametrize("after, _what", CHANGES, ids=[what for _, what in CHANGES])
def test_vmi_metadata_is_propagated_to_running_pod(after: Json, _what: str) -> None:
    launcher = pod_of(running_with(BEFORE), labels={"istio.io/rev": "others"})
    assert pod_patch(running_with(BEFORE), launcher) is None
    patch = pod_patch(running_with(after), launcher)
    assert patch is not None and patch["metadata"].pop("uid") == "pod-uid"
    now = msgspec.convert(merge(msgspec.to_builtins(launcher), patch), Pod)
    fresh = pod_of(running_with(after))
    assert now.metadata.labels == {**(fresh.metadata.labels or {}), "istio.io/rev": "others"}
    assert now.metadata.annotations == fresh.metadata.annotations
    assert pod_patch(running_with(after), now) is None


def test_node_label_is_not_propagated_to_pod() -> None:
    assert pod_patch(running_with(BEFORE), pod_of(started(BEFORE))) is None


def test_withheld_annotations_are_not_propagated_to_running_pod() -> None:
    after = {**BEFORE, "annotations": {**BEFORE["annotations"], "k8s.v1.cni.cncf.io/networks": "evil",
                                       "container.apparmor.security.beta.kubernetes.io/compute": "unconfined"},
             "labels": {**BEFORE["labels"], "kubevirt.io": "virt-handler"}}  # fmt: skip
    assert pod_patch(running_with(after), pod_of(running_with(BEFORE))) is None


def test_terminating_pod_is_not_patched() -> None:
    launcher = pod_of(running_with(BEFORE))
    going = msgspec.structs.replace(launcher.metadata, deletionTimestamp="2026-01-02T03:04:05Z")
    assert pod_patch(running_with({}), msgspec.structs.replace(launcher, metadata=going)) is None


def test_template_without_metadata_adds_no_record() -> None:
    assert names.ANNOTATION_CARRIED not in (started({}).metadata.annotations or {})
