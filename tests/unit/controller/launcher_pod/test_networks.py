"""Secondary networks of a VMI's pod, on complete snapshots: before the pod exists, and while it runs."""

import json
from typing import Any

import msgspec
import pytest

from api import defaults, names
from api.k8s.objects import Pod
from api.kubevirt.networks import pod_interface
from api.kubevirt.vmi import VirtualMachineInstance
from api.network_attachments import ANNOTATION_NETWORKS, selections
from controller.actions import Concurrently, Create, Patch, RecordEvent
from controller.installation.settings import ControllerSettings
from controller.launcher_pod import networks as pod_networks
from controller.launcher_pod.resources import devices
from controller.vmi.plan import ObservedVmi, plan
from tests.unit.controller.objects import LONG_AGO, NOW, SPEC, definition, definitions, pod, vmi

Json = dict[str, Any]
RED: Json = {"name": "red", "bridge": {}, "macAddress": "02:00:00:00:00:0A"}
BRIDGE = "bridge.network.kubevirt.io/br1"


def spec(*cards: Json, network: str = "br1") -> Json:
    networks = [{"name": card["name"], "multus": {"networkName": network}} for card in cards]
    return {**SPEC, "networks": networks, "domain": {**SPEC["domain"], "devices": {"interfaces": list(cards)}}}


def see(instance: VirtualMachineInstance, **more: Any) -> list[Any]:
    flat: list[Any] = []
    for action in plan(ObservedVmi(vmi=instance, now=NOW, **more)):
        flat += action.actions if isinstance(action, Concurrently) else [action]
    return flat


def told(actions: list[Any]) -> str:
    """The message, which is the same in the VMI's condition and the Event."""
    patch, event = actions
    assert isinstance(patch, Patch) and isinstance(event, RecordEvent) and event.type == "Warning"
    condition = next(c for c in patch.patch["status"]["conditions"] if c["type"] == names.CONDITION_SYNCHRONIZED)
    assert condition["reason"] == event.reason == names.REASON_NETWORK_NOT_FOUND
    assert condition["message"] == event.message
    return event.message


# ---- before the pod exists


def test_missing_network_is_reported_with_field_and_remedy() -> None:
    instance = vmi("Pending", spec=spec(RED))
    assert told(see(instance)) == (
        "NetworkAttachmentDefinition br1 not found in namespace default (spec.networks[0].multus.networkName): "
        "create it, or reference another one"
    )
    (create,) = see(instance, definitions=definitions(definition("br1")))
    assert isinstance(create, Create) and create.kind is Pod


def test_all_missing_networks_are_reported_at_once() -> None:
    two = spec(RED, {"name": "blue", "bridge": {}})
    two["networks"][1]["multus"]["networkName"] = "default/br2"
    words = told(see(vmi("Pending", spec=two)))
    assert "NetworkAttachmentDefinition br1 not" in words and "NetworkAttachmentDefinition br2 not" in words
    assert "networks[1]" in words


def test_missing_crd_is_reported() -> None:
    words = told(see(vmi("Pending", spec=spec(RED)), knows_definitions=False))
    assert "does not serve this kind: apply its CustomResourceDefinition" in words


def test_absent_interface_needs_no_network() -> None:
    (create,) = see(vmi("Pending", spec=spec({**RED, "state": "absent"})))
    assert isinstance(create, Create) and ANNOTATION_NETWORKS not in create.obj["metadata"]["annotations"]


def test_sriov_network_requires_resource_annotation() -> None:
    instance = vmi("Pending", spec=spec({"name": "vf", "sriov": {}}))
    words = told(see(instance, definitions=definitions(definition("br1"))))
    assert "default/br1: annotation k8s.v1.cni.cncf.io/resourceName: required" in words and "'vf'" in words


@pytest.mark.parametrize(
    "resource",
    ["cpu", "memory", "devices.kubevirt.io/kvm", "kubernetes.io/x", "hugepages-2Mi", "a.kubernetes.io/x", "a b/c",
     "example.com/", "/x", "example.com/x/y", "x" * 300 + ".com/x", "requests.cpu", "pods", "Example.com/x"],
)  # fmt: skip
def test_definition_cannot_request_reserved_resources(resource: str) -> None:
    """A definition's author influences the pods of all VMIs that reference it."""
    found = definitions(definition("br1", resource))
    words = told(see(vmi("Pending", spec=spec(RED)), definitions=found))
    assert "is not a device plugin resource such as" in words and len(words) < 400


def test_each_network_requests_one_device() -> None:
    cards = [{"name": name, "bridge": {}} for name in "abc"]
    (create,) = see(vmi("Pending", spec=spec(*cards)), definitions=definitions(definition("br1", BRIDGE)))
    (compute,) = create.obj["spec"]["containers"]
    assert compute["resources"]["limits"][BRIDGE] == "3"
    assert not [each for each in compute["env"] if each["name"].startswith("KUBEVIRT_")]


def test_networks_annotation_follows_npwg_format() -> None:
    (create,) = see(vmi("Pending", spec=spec(RED)), definitions=definitions(definition("br1", BRIDGE)))
    (asked,) = selections("default", create.obj["metadata"]["annotations"][ANNOTATION_NETWORKS])
    assert (asked.network, asked.interface, asked.mac) == ("default/br1", pod_interface("red"), "02:00:00:00:00:0a")


def test_vhost_net_is_requested_for_virtio_interfaces() -> None:
    def wanted(card: Json) -> bool:
        return names.DEVICE_VHOST_NET in devices(defaults.default_vmi(vmi(spec=spec(card))).spec, ControllerSettings())

    assert wanted(RED)
    assert not wanted({**RED, "model": "e1000e"})
    assert not wanted({"name": "vf", "sriov": {}})
    assert not wanted({**RED, "state": "absent"})


# ---- while it runs


def running(*cards: Json, annotation: str | None, phase: str = "Running", **more: Any) -> list[Any]:
    """The actions for a running pod with this networks annotation."""
    instance = vmi(phase, spec=spec(*cards), stamps={phase: LONG_AGO}, conditions=more.pop("conditions", []))
    launcher = pod("running", gate="True", **more)
    annotations = {} if annotation is None else {ANNOTATION_NETWORKS: annotation}
    meta = msgspec.structs.replace(launcher.metadata, annotations=annotations)
    actions = see(instance, pod=msgspec.structs.replace(launcher, metadata=meta))
    return [each for each in actions if isinstance(each, Patch) and each.kind is Pod]


def asked(*cards: Json) -> str | None:
    return pod_networks.annotation(defaults.default_vmi(vmi(spec=spec(*cards))))


BLUE: Json = {"name": "blue", "bridge": {}}


@pytest.mark.parametrize("phase", ["Scheduling", "Scheduled", "Running"])
def test_hot_plugged_network_is_added_to_annotation(phase: str) -> None:
    (patch,) = running(RED, BLUE, annotation=asked(RED), phase=phase)
    assert patch.subresource == "status" and patch.patch_kind == "merge"
    assert patch.patch == {"metadata": {"uid": "pod-uid", "annotations": {ANNOTATION_NETWORKS: asked(RED, BLUE)}}}
    assert running(RED, BLUE, annotation=asked(RED, BLUE), phase=phase) == []


def test_first_network_adds_annotation() -> None:
    (patch,) = running(RED, annotation=None)
    assert patch.patch["metadata"]["annotations"] == {ANNOTATION_NETWORKS: asked(RED)}


def test_network_stays_listed_until_guest_releases_it() -> None:
    gone = {**RED, "state": "absent"}
    assert running(gone, BLUE, annotation=asked(RED, BLUE)) == []
    (patch,) = running(BLUE, annotation=asked(RED, BLUE))
    assert patch.patch["metadata"]["annotations"] == {ANNOTATION_NETWORKS: asked(BLUE)}


def test_removing_last_network_removes_annotation() -> None:
    instance = {**SPEC, "domain": {**SPEC["domain"], "devices": {"autoattachPodInterface": False}}}
    launcher = pod("running", gate="True")
    meta = msgspec.structs.replace(launcher.metadata, annotations={ANNOTATION_NETWORKS: asked(RED) or ""})
    found = see(
        vmi("Running", spec=instance, stamps={"Running": LONG_AGO}),
        pod=msgspec.structs.replace(launcher, metadata=meta),
    )
    assert [each.patch["metadata"]["annotations"] for each in found] == [{ANNOTATION_NETWORKS: None}]


def test_terminating_pod_is_not_patched() -> None:
    assert running(RED, annotation=None, deleting=True) == []


@pytest.mark.parametrize("junk", ["", "[", "{}", "[1]", '"x"', "null", "net1,net2", "[" * 200_000])
def test_invalid_annotation_is_rewritten(junk: str) -> None:
    (patch,) = running(RED, annotation=junk)
    assert json.loads(patch.patch["metadata"]["annotations"][ANNOTATION_NETWORKS])[0]["name"] == "br1"


def test_network_of_other_namespace_is_not_attached() -> None:
    """A user who may write VMIs but not pods could otherwise make the controller write the annotation."""
    instance = vmi("Running", spec=spec(RED, network="kube-system/secrets"), stamps={"Running": LONG_AGO})
    assert see(instance, pod=pod("running", gate="True")) == []
    theirs = definitions(definition("secrets", BRIDGE, "kube-system"))
    assert pod_networks.amounts(instance, theirs) == {} and pod_networks.environment(instance, theirs) == {}
