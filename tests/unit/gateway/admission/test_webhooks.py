"""Mutation, validation, protected fields, and the format of responses."""

from __future__ import annotations

import copy
import json
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from api import names
from api.errors import Fault
from api.kinds.catalog import CATALOG
from api.kubevirt.configuration import KubeVirtConfiguration
from api.validation.document import validate_document
from gateway.admission import json_patch, kinds, ownership, review
from gateway.admission.review import AdmissionDecision, AdmissionRequest, UserInfo
from gateway.admission.webhooks import MUTATE, VALIDATE
from tests.fakes.patches import json_patched
from tests.unit.api.vm_manifests import machine

MANIFESTS = Path(__file__).resolve().parents[4] / "manifests"
Json = dict[str, Any]
NAMESPACE = "hyperlet"
CONTROLLER = UserInfo(username="system:serviceaccount:hyperlet:hyperlet-controller")
ALICE = UserInfo(username="alice", groups=["devs"])
ROOT = UserInfo(username="kubernetes-admin", groups=["system:masters"])


def asked(new: Json, old: Json | None = None, user: UserInfo = ALICE, **more: Any) -> AdmissionRequest:
    kind = review.GroupVersionKind(group="kubevirt.io", version="v1", kind=new["kind"])
    meta = new.get("metadata") or {}
    return AdmissionRequest(
        uid="u",
        operation="UPDATE" if old is not None else "CREATE",
        kind=kind,
        name=meta.get("name"),
        namespace="default",
        userInfo=user,
        object=new,
        oldObject=old,
        **more,
    )


def vmi(**metadata: Any) -> Json:
    spec = machine()["spec"]["template"]["spec"]
    meta = {"name": "small", "namespace": "default", **metadata}
    return {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": meta, "spec": spec}


def mutated(request: AdmissionRequest, **configuration: Any) -> Json:
    """The object after the mutating webhook."""
    verdict = kinds.mutate(request, KubeVirtConfiguration(**configuration), NAMESPACE)
    assert not verdict.faults, verdict.faults
    return json_patched(request.object or {}, list(verdict.patch))


def validated(request: AdmissionRequest) -> AdmissionDecision:
    """The decision of the validating webhook."""
    return kinds.validate(request, KubeVirtConfiguration(), NAMESPACE)


def refused(request: AdmissionRequest) -> dict[str, str]:
    """Messages by path of the validating webhook; the mutating webhook must report the same."""
    verdict = validated(request)
    assert kinds.mutate(request, KubeVirtConfiguration(), NAMESPACE).faults == verdict.faults
    return {fault.path: fault.message for fault in verdict.faults}


def changed(document: Json, path: str, value: Any) -> Json:
    """A copy with one value replaced."""
    new = copy.deepcopy(document)
    *parents, last = path.split("/")
    node = new
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return new


# ---- defaults


def test_minimal_vm_gets_stored_defaults() -> None:
    bare = machine()
    del bare["spec"]["runStrategy"], bare["spec"]["template"]["spec"]["networks"]
    del bare["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"]
    seen = mutated(asked(bare), cpuModel="Haswell")["spec"]
    spec = seen["template"]["spec"]
    assert seen["runStrategy"] == "Halted"
    assert spec["domain"]["machine"] == {"type": "q35"} and spec["architecture"] == "amd64"
    assert spec["domain"]["cpu"] == {"model": "Haswell"}
    assert spec["networks"] == [{"name": "default", "pod": {}}]
    assert spec["domain"]["devices"]["interfaces"] == [{"name": "default", "masquerade": {}, "model": "virtio"}]


def test_user_values_are_not_changed() -> None:
    """In particular lists: GitOps tools would report a permanent difference. No identities: VMs are copied."""
    mine = machine({"domain.machine": {"type": "pc-q35-9.0"}, "domain.cpu": {"cores": 2, "model": "EPYC"}})
    seen = mutated(asked(mine), machineType="q35", cpuModel="Haswell")
    guarded = changed(mine, "metadata/finalizers", [names.FINALIZER_VM])
    assert seen == changed(guarded, "spec/template/spec/architecture", "amd64")


@pytest.mark.parametrize(("make", "finalizer"), [(machine, names.FINALIZER_VM), (vmi, names.FINALIZER_VMI)])
def test_created_objects_get_finalizer(make: Callable[[], Json], finalizer: str) -> None:
    assert mutated(asked(make()))["metadata"]["finalizers"] == [finalizer]
    theirs = changed(make(), "metadata/finalizers", ["example.com/mine"])
    assert mutated(asked(theirs))["metadata"]["finalizers"] == ["example.com/mine", finalizer]
    # On updates the controller decides whether the finalizer is needed.
    relabelled = changed(make(), "metadata/labels", {"team": "blue"})
    assert "finalizers" not in mutated(asked(relabelled, make()))["metadata"]


def test_updated_vm_gets_no_finalizer() -> None:
    """An update does not restore a finalizer that was removed on purpose."""
    assert "finalizers" not in mutated(asked(changed(machine(), "spec/runStrategy", "Halted"), machine()))["metadata"]


def test_autoattach_false_adds_no_network() -> None:
    bare = machine({"domain.devices.autoattachPodInterface": False})
    del (
        bare["spec"]["template"]["spec"]["networks"],
        bare["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"],
    )
    spec = mutated(asked(bare))["spec"]["template"]["spec"]
    assert "networks" not in spec and "interfaces" not in spec["domain"]["devices"]


def test_running_adds_no_run_strategy() -> None:
    mine = machine()
    del mine["spec"]["runStrategy"]
    mine["spec"]["running"] = False
    assert "runStrategy" not in mutated(asked(mine))["spec"]


def test_mutation_is_idempotent() -> None:
    for document in (machine(), vmi()):
        once = mutated(asked(document))
        assert mutated(asked(once)) == once


def test_update_without_spec_change_is_not_mutated() -> None:
    old = machine()
    new = changed(old, "metadata/labels", {"team": "blue"})
    assert mutated(asked(new, old)) == new
    stopped = changed(old, "spec/runStrategy", "Halted")
    assert mutated(asked(stopped, old))["spec"]["template"]["spec"]["architecture"] == "amd64"


@pytest.mark.parametrize("field", ["instancetype", "preference"])
def test_ignorable_instancetype_inference_is_dropped(field: str) -> None:
    """As `virtctl create vm` adds them. With the policy Reject, or by name, they are refused."""
    matcher = {"inferFromVolume": "root", "inferFromVolumeFailurePolicy": "Ignore"}
    seen = mutated(asked(changed(machine(), f"spec/{field}", matcher)))
    assert field not in seen["spec"]
    assert not validated(asked(seen)).faults
    again = asked(changed(seen, f"spec/{field}", matcher), seen)
    assert mutated(again)["spec"] == seen["spec"], "and applied once more, it is dropped once more"
    for asking in ({"inferFromVolume": "root"}, {"name": "small"}, {**matcher, "name": "small"}):
        assert f"spec.{field}" in refused(asked(changed(machine(), f"spec/{field}", asking)))


def test_vm_keeps_written_machine_type_and_vmi_gets_upstream_type() -> None:
    written = machine({"domain.machine": {"type": "pc-q35-rhel9.4.0"}})
    assert mutated(asked(written))["spec"]["template"]["spec"]["domain"]["machine"] == {"type": "pc-q35-rhel9.4.0"}
    instance = changed(vmi(), "spec/domain/machine", {"type": "pc-q35-rhel9.4.0"})
    assert mutated(asked(instance))["spec"]["domain"]["machine"] == {"type": "pc-q35-8.2"}


@pytest.mark.parametrize("name", ["hooks.kubevirt.io/hookSidecars", "kubevirt.io/ignitiondata"])
def test_vmi_with_unsupported_annotation_is_refused(name: str) -> None:
    assert f"metadata.annotations.{name}" in refused(asked(vmi(annotations={name: "x"})))


def test_vmi_gets_all_defaults() -> None:
    spec = mutated(asked(vmi()))["spec"]
    assert spec["terminationGracePeriodSeconds"] == 30 and spec["architecture"] == "amd64"
    assert spec["domain"]["cpu"] == {"cores": 1, "sockets": 1, "threads": 1, "model": "host-model"}
    assert spec["domain"]["firmware"]["uuid"]
    interface = spec["domain"]["devices"]["interfaces"][0]
    assert interface["model"] == "virtio" and interface["macAddress"].startswith("02:")


def test_mac_addresses_are_stable_per_name() -> None:
    def mac(**metadata: Any) -> str | None:
        found = mutated(asked(vmi(**metadata)))["spec"]["domain"]["devices"]["interfaces"][0]
        return found.get("macAddress")

    assert mac() == mac() != mac(name="other")
    assert mac(namespace="default") == mac(namespace=None), "the namespace of the request counts"
    assert mac(name=None, generateName="many-") is None, "two of no name yet must not be the same"


def test_vmi_from_controller_is_not_mutated() -> None:
    whole = mutated(asked(vmi()))
    assert kinds.mutate(asked(whole, user=CONTROLLER), KubeVirtConfiguration(), NAMESPACE).patch == []


def test_user_supplied_status_is_dropped_on_create() -> None:
    """Like the API server for kinds with a status subresource."""
    exported = {**vmi(), "status": {"phase": "Running", "nodeName": "node-1"}}
    assert "status" not in mutated(asked(exported))
    mine = asked(exported, user=CONTROLLER)
    assert mutated(mine)["status"] == exported["status"]


def test_patches_only_add() -> None:
    old = {"a": {"b~/c": 1, "mine": True}, "list": [{"x": 1}], "null": None}
    new = {"a": {"b~/c": 2}, "list": [{"x": 1, "y": 2}, {"z": 3}], "null": {"w": 1}, "more": []}
    operations = list(json_patch.additions(old, new))
    assert json_patched(old, operations) == {
        "a": {"b~/c": 2, "mine": True},
        "list": [{"x": 1, "y": 2}, {"z": 3}],
        "null": {"w": 1},
        "more": [],
    }
    assert {"op": "replace", "path": "/a/b~0~1c", "value": 2} in operations


# ---- faults


def test_all_faults_are_reported_with_paths() -> None:
    bad = machine(
        {
            "domain.devices.disks.1": {"name": "orphan"},
            "domain.devices.gpus": [{"name": "g", "deviceName": "a/b"}],
            "domain.memory.guest": "much",
            "domain.cpu": {"cores": "two"},
            "domain.devicez": {},
            "/spec.runStrategy": "Sometimes",
        }
    )
    paths = set(refused(asked(bad)))
    prefix = "spec.template.spec.domain"
    assert paths >= {
        f"{prefix}.devices.disks[1].name",
        f"{prefix}.devices.gpus",
        f"{prefix}.memory.guest",
        f"{prefix}.cpu.cores",
        f"{prefix}.devicez",
        "spec.runStrategy",
    }


@pytest.mark.parametrize("kind", [kind.name for kind in CATALOG.admitted()])
def test_every_kind_is_validated(kind: str) -> None:
    document = {"apiVersion": "kubevirt.io/v1", "kind": kind, "metadata": {"name": "x"}, "spec": {"nonsense": 1}}
    assert refused(asked(document)) == {fault.path: fault.message for fault in validate_document(document)} != {}


def test_a_name_that_is_too_long_is_refused() -> None:
    assert "metadata.name" in refused(asked(changed(machine(), "metadata/name", "a" * 64)))


def test_unchanged_invalid_spec_does_not_block_metadata_updates() -> None:
    old = machine({"domain.devices.gpus": [{"name": "g", "deviceName": "a/b"}]})
    assert refused(asked(old)) != {}
    assert refused(asked(changed(old, "metadata/labels", {"a": "b"}), old)) == {}
    assert refused(asked(changed(old, "spec/runStrategy", "Halted"), old)) != {}
    deleting = changed(old, "metadata/deletionTimestamp", "2026-01-01T00:00:00Z")
    assert refused(asked(changed(deleting, "metadata/finalizers", []), deleting)) == {}


def test_pruned_fields_are_reported_from_last_applied_annotation() -> None:
    wrong = machine({"domain.devices.diskz": []})
    wrong["runStrategy"] = "Always"
    applied = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(wrong)}
    stored = changed(machine(), "metadata/annotations", applied)
    found = refused(asked(stored))
    assert set(found) == {"spec.template.spec.domain.devices.diskz", "runStrategy"}
    assert "did you mean disks?" in found["spec.template.spec.domain.devices.diskz"]
    assert refused(asked(changed(stored, "metadata/labels", {"a": "b"}), stored)) == {}, "it was told once"
    for nonsense in ("{", "[]", "7", json.dumps({"kind": "Other"})):
        odd = changed(machine(), "metadata/annotations", dict.fromkeys(applied, nonsense))
        assert "spec" not in refused(asked(odd))


# ---- protected fields


def test_vmi_spec_is_immutable() -> None:
    old = vmi()
    new = copy.deepcopy(old)
    new["spec"]["domain"]["memory"]["guest"] = "1Gi"
    new["spec"]["domain"]["devices"]["disks"].append({"name": "more"})
    new["spec"]["nodeSelector"] = {"a": "b"}
    found = refused(asked(new, old))
    assert set(found) == {"spec.domain.memory.guest", "spec.domain.devices.disks", "spec.nodeSelector"}
    assert all("VirtualMachine" in words for words in found.values())
    assert refused(asked(new, old, ROOT)) == found, "even an administrator's change would have no effect"
    assert validated(asked(new, old, CONTROLLER)) == AdmissionDecision()


def test_status_writes_by_users_are_refused() -> None:
    old = {**vmi(), "status": {"phase": "Running", "nodeName": "node-1", "activePods": {"u": "node-1"}}}
    for status in ({}, {"phase": "Succeeded"}, {**old["status"], "nodeName": "node-2"}, {**old["status"], "x": 1}):
        new = {**old, "status": status}
        assert set(refused(asked(new, old))) == {"status"}
        assert validated(asked(new, old, CONTROLLER)).faults == ()
        assert validated(asked(new, old, ROOT)).faults == []
    assert refused(asked(changed(old, "metadata/labels", {"a": "b"}), old)) == {}
    assert validated(asked({**vmi(), "status": {"phase": "Running"}})).faults


@pytest.mark.parametrize("label", sorted(names.OWNED_LABELS))
def test_component_labels_are_protected(label: str) -> None:
    """Handlers select VMIs by label: a user could assign a VMI to another node's handler."""
    for document, path in (
        (vmi(), "metadata/labels"),
        (machine(), "metadata/labels"),
        (machine(), "spec/template/metadata/labels"),
    ):
        marked = changed(document, path, {label: "node-1"})
        moved = changed(document, path, {label: "node-2"})
        at = f"{path.replace('/', '.')}.{label}"
        assert refused(asked(marked)) == {at: "is managed by hyperlet"}
        assert set(refused(asked(moved, marked))) == {at}
        assert set(refused(asked(document, marked))) == {at}
        assert refused(asked(marked, marked)) == {}
        assert not validated(asked(marked, user=CONTROLLER)).faults
        assert not validated(asked(marked, user=ROOT)).faults


def test_replace_restores_omitted_finalizers() -> None:
    for document, finalizer in ((vmi(), names.FINALIZER_VMI), (machine(), names.FINALIZER_VM)):
        held = changed(document, "metadata/finalizers", ["other", finalizer])
        assert mutated(asked(document, held))["metadata"]["finalizers"] == [finalizer]
        mine = changed(document, "metadata/finalizers", ["mine"])
        assert mutated(asked(mine, held))["metadata"]["finalizers"] == ["mine", finalizer]
        assert mutated(asked(held, held))["metadata"]["finalizers"] == ["other", finalizer]
        # Repairs: finalizers removed by an administrator or the controller are not restored.
        for user in (ROOT, CONTROLLER):
            assert "finalizers" not in mutated(asked(document, held, user))["metadata"]


def test_component_annotations_and_finalizers_are_protected() -> None:
    for annotation in names.OWNED_ANNOTATIONS:
        assert refused(asked(changed(vmi(), "metadata/annotations", {annotation: "7"})))
    for document, finalizer in ((vmi(), names.FINALIZER_VMI), (machine(), names.FINALIZER_VM)):
        held = changed(document, "metadata/finalizers", ["other", finalizer])
        free = changed(document, "metadata/finalizers", ["other"])
        assert refused(asked(free, held)) == {}, "a manifest that is written anew: the controller puts it on again"
        held, free = (changed(each, "metadata/deletionTimestamp", "2026-01-01T00:00:00Z") for each in (held, free))
        assert set(refused(asked(free, held))) == {"metadata.finalizers"}
        assert refused(asked(changed(held, "metadata/finalizers", [finalizer]), held)) == {}
        assert not validated(asked(free, held, CONTROLLER)).faults
        assert not validated(asked(free, held, ROOT)).faults


@pytest.mark.parametrize(
    "username",
    [
        "system:serviceaccount:default:hyperlet-controller",
        "system:serviceaccount:hyperlet:hyperlet-controller2",
        "system:serviceaccount:hyperlet:default",
        "hyperlet-controller",
        "system:serviceaccount:hyperlet-controller:hyperlet-controller",
        "",
    ],
)
def test_other_accounts_are_not_components(username: str) -> None:
    new = {**vmi(), "status": {"phase": "Succeeded"}}
    assert validated(asked(new, vmi(), UserInfo(username=username))).faults


@pytest.mark.parametrize("account", ["hyperlet-controller", "hyperlet-gateway", "hyperlet-handler"])
def test_component_writes_are_not_validated(account: str) -> None:
    extra = {ownership.NODE_NAME: ["node-1"]}
    user = UserInfo(username=f"system:serviceaccount:hyperlet:{account}", extra=extra)
    old = {**vmi(), "status": {"nodeName": "node-1"}}
    assert not validated(asked(changed(old, "status/phase", "Succeeded"), old, user)).faults


HANDLER = UserInfo(username="system:serviceaccount:hyperlet:hyperlet-handler", extra={ownership.NODE_NAME: ["node-1"]})


def test_handler_may_only_write_vmi_status() -> None:
    """All handlers share one account: a token stolen on one node must not affect other nodes' VMs (line 15)."""
    old = {
        **vmi(labels={"a": "b"}),
        "status": {"nodeName": "node-1", "phase": "Scheduled", "activePods": {"u": "node-1"}},
    }
    report = changed(old, "status/phase", "Running")
    assert validated(asked(report, old, HANDLER)) == AdmissionDecision(faults=[])
    for path, value in {
        "spec/nodeSelector": {"a": "b"},
        "metadata/labels": {names.LABEL_NODE_NAME: "node-2"},
        "metadata/annotations": {"x": "y"},
        "metadata/finalizers": ["mine"],
        "metadata/ownerReferences": [],
        "status/activePods": {"other": "node-2"},
    }.items():
        verdict = validated(asked(changed(old, path, value), old, HANDLER))
        expected = [] if value == [] else [path.split("/")[0] if path.startswith("spec") else path.replace("/", ".")]
        assert [fault.path for fault in verdict.faults] == expected, "an empty list is as good as none"
    for document, before in ((old, None), (machine(), machine()), (machine(), None)):
        assert validated(asked(document, before, HANDLER)).faults


@pytest.mark.parametrize(
    ("left", "faults"),
    [
        ({"theirs": "node-2"}, []),
        ({"u": "node-1"}, ["status.activePods"]),
        ({}, ["status.activePods"]),
        ({"u": "", "theirs": "node-2"}, ["status.activePods"]),
        ({"u": "node-1", "theirs": "node-2", "more": "node-1"}, ["status.activePods"]),
    ],
)
def test_handler_may_only_remove_own_nodes_pods_from_active_pods(left: dict[str, str], faults: list[str]) -> None:
    """A terminated pod allows its VM to start elsewhere: a false report from another node would start a second copy."""
    old = {**vmi(), "status": {"nodeName": "node-1", "activePods": {"u": "node-1", "theirs": "node-2"}}}
    user = UserInfo(username=HANDLER.username, extra={ownership.NODE_NAME: ["node-1"]})
    verdict = validated(asked(changed(old, "status/activePods", left), old, user))
    assert [fault.path for fault in verdict.faults] == faults


def test_handler_token_is_restricted_to_its_node() -> None:
    old = {**vmi(), "status": {"nodeName": "node-1", "phase": "Scheduled"}}
    report = changed(old, "status/phase", "Running")
    taken = changed(old, "status/nodeName", "node-2")
    for node, new, fine in (("node-1", report, True), ("node-2", report, False), ("node-1", taken, False)):
        extra = {ownership.NODE_NAME: [node]}
        user = msgspec.structs.replace(HANDLER, extra=extra)
        faults = validated(asked(new, old, user)).faults
        assert [fault.path for fault in faults] == ([] if fine else ["status.nodeName"])


@pytest.mark.parametrize("extra", [None, {}, {ownership.NODE_NAME: []}])
def test_handler_token_without_node_may_not_write(extra: dict[str, list[str]] | None) -> None:
    for status in ({"nodeName": "node-1", "phase": "Scheduled"}, {"phase": "Scheduled"}):
        old = {**vmi(), "status": status}
        user = msgspec.structs.replace(HANDLER, extra=extra)
        faults = validated(asked(changed(old, "status/phase", "Running"), old, user)).faults
        assert [fault.path for fault in faults] == ["status.nodeName"]


def test_other_kinds_are_allowed() -> None:
    request = asked({**vmi(), "spec": {"bad": 1}})
    for other in (
        {"subResource": "status"},
        {"operation": "DELETE"},
        {"kind": review.GroupVersionKind(group="apps", kind="VirtualMachine")},
        {"kind": review.GroupVersionKind(group="kubevirt.io", kind="Later")},
        {"object": None},
    ):
        assert validated(msgspec.structs.replace(request, **other)) == AdmissionDecision()


# ---- responses


def test_refusal_has_status_with_causes() -> None:
    request = asked(machine())
    faults = [Fault("spec.a", names.FAULT_INVALID, "is wrong"), Fault("spec.b", names.FAULT_REQUIRED, "is missing")]
    response = json.loads(review.answer(request, AdmissionDecision(faults=faults)))["response"]
    assert response["uid"] == "u" and response["allowed"] is False
    status = response["status"]
    assert (status["code"], status["reason"]) == (422, "Invalid")
    assert status["message"] == "spec.a: is wrong; spec.b: is missing"
    assert status["details"] == {
        "name": "small",
        "group": "kubevirt.io",
        "kind": "VirtualMachine",
        "causes": [
            {"reason": "FieldValueInvalid", "message": "is wrong", "field": "spec.a"},
            {"reason": "FieldValueRequired", "message": "is missing", "field": "spec.b"},
        ],
    }


def test_response_size_is_bounded() -> None:
    faults = [Fault(f"spec.{n}", names.FAULT_INVALID, "x" * 500) for n in range(1000)]
    verdict = AdmissionDecision(faults=faults, warnings=["w" * 1000])
    response = json.loads(review.answer(asked(machine()), verdict))["response"]
    assert len(response["status"]["details"]["causes"]) == review.FAULT_LIMIT
    assert len(response["status"]["message"]) == review.MESSAGE_LIMIT
    assert len(response["warnings"][0]) == review.WARNING_LIMIT


def test_response_has_patch_and_warnings() -> None:
    verdict = AdmissionDecision(patch=[{"op": "add", "path": "/a", "value": 1}], warnings=["mind"])
    response = json.loads(review.answer(asked(machine()), verdict))["response"]
    assert response["allowed"] is True and response["patchType"] == "JSONPatch" and response["warnings"] == ["mind"]
    assert json.loads(b64decode(response["patch"])) == verdict.patch
    plain = json.loads(review.answer(asked(machine()), AdmissionDecision()))["response"]
    assert plain == {"uid": "u", "allowed": True}


def test_warnings_of_valid_vm() -> None:
    mine = machine({"/spec.running": True})
    del mine["spec"]["runStrategy"]
    assert validated(asked(mine)).warnings == ["spec.running is deprecated: use spec.runStrategy"]
    assert validated(asked(mine, mine)).warnings == []


def test_webhook_manifests_cover_every_kind_with_rules() -> None:
    asked_about: dict[str, set[tuple[str, str]]] = {}
    for document in yaml.safe_load_all((MANIFESTS / "webhooks.yaml").read_text()):
        for hook in document["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            for rule in hook["rules"]:
                pairs = {(operation, resource) for operation in rule["operations"] for resource in rule["resources"]}
                asked_about.setdefault(path, set()).update(pairs)
    validated_kinds = CATALOG.admitted()
    assert {kind.name for kind in validated_kinds} >= {"VirtualMachine", "VirtualMachineInstance", "KubeVirt"}
    assert asked_about[VALIDATE] == {
        (operation, kind.plural) for operation in kinds.OPERATIONS for kind in validated_kinds
    }
    completed = [kind for kind in validated_kinds if kind.defaults is not None]
    assert asked_about[MUTATE] == {(operation, kind.plural) for operation in kinds.OPERATIONS for kind in completed}


def test_invalid_bridge_patterns_are_refused() -> None:
    """Also with an unchanged spec: the annotations are settings, too."""
    document: Json = {"apiVersion": "kubevirt.io/v1", "kind": "KubeVirt", "metadata": {"name": "kubevirt"}, "spec": {}}
    wrong = changed(document, "metadata/annotations", {"hyperlet/denied-bridges": "br[1]"})
    for old in (None, document):
        assert set(refused(asked(wrong, old))) == {"metadata.annotations.hyperlet/denied-bridges"}
    # A stored invalid value must not block other changes.
    assert refused(asked(changed(wrong, "metadata/labels", {"a": "b"}), wrong)) == {}
    assert refused(asked(changed(document, "metadata/annotations", {"hyperlet/denied-bridges": "br1"}), document)) == {}
