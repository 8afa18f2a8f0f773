"""Conflicting updates remove a stored default, but not a value set by the user."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from api.kubevirt.configuration import KubeVirtConfiguration
from gateway.admission import default_conflicts, kinds
from tests.unit.api.vm_manifests import machine
from tests.unit.gateway.admission.test_webhooks import NAMESPACE, asked, changed, mutated, refused

Json = dict[str, Any]
APPLIED = "metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration"


def bare() -> Json:
    """A VM without run strategy and networks."""
    document = machine()
    del document["spec"]["runStrategy"], document["spec"]["template"]["spec"]["networks"]
    del document["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"]
    return document


def noted(document: Json, manifest: Json) -> Json:
    """The VM with the last-applied annotation of `kubectl apply`."""
    new = copy.deepcopy(document)
    new["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(manifest)}
    return new


def managed(document: Json, spec: Json) -> Json:
    """The VM with managedFields of server-side apply for fields of the spec."""
    new = copy.deepcopy(document)
    new["metadata"]["managedFields"] = [
        {"manager": "kubectl", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": spec}},
        {
            "manager": "x",
            "operation": "Update",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:runStrategy": {}}},
        },
    ]
    return new


def stored(manifest: Json) -> Json:
    """The stored object after a manifest is created."""
    return mutated(asked(manifest))


def strategy(document: Json) -> tuple[Any, Any]:
    return document["spec"].get("runStrategy"), document["spec"].get("running")


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("how", ["kubectl apply", "server-side apply", "kubectl patch"])
def test_running_removes_default_run_strategy(running: bool, how: str) -> None:
    old = noted(stored(bare()), bare()) if how == "kubectl apply" else stored(bare())
    new = changed(old, "spec/running", running)
    if how == "kubectl apply":
        new = noted(new, changed(bare(), "spec/running", running))
    elif how == "server-side apply":
        new = managed(new, {"f:running": {}, "f:template": {}})
    seen = mutated(asked(new, old))
    assert strategy(seen) == (None, running)
    # Removing it halts the VM again.
    again = changed(seen, "spec/running", None)
    assert strategy(mutated(asked(again, seen))) == ("Halted", None)


def test_run_strategy_set_by_user_is_kept() -> None:
    written = changed(bare(), "spec/runStrategy", "Halted")
    both = changed(written, "spec/running", False)
    for new in (noted(both, both), managed(both, {"f:running": {}, "f:runStrategy": {}})):
        assert set(refused(asked(new, noted(stored(written), written)))) == {"spec.runStrategy"}
    for other in ("Always", "Manual", "RerunOnFailure", "Once"):
        old = changed(bare(), "spec/runStrategy", other)
        assert set(refused(asked(changed(old, "spec/running", False), old))) == {"spec.runStrategy"}
    # Both in a created VM: there is no stored default to remove.
    assert set(refused(asked(both))) == {"spec.runStrategy"}


def test_run_strategy_changed_in_same_update_is_kept() -> None:
    old = stored(bare())
    new = changed(changed(old, "spec/running", True), "spec/runStrategy", "Always")
    assert set(refused(asked(new, old))) == {"spec.runStrategy"}


def merged_by_name(old: Json, interface: Json, network: Json) -> Json:
    """Merges named lists like server-side apply."""
    new = copy.deepcopy(old)
    spec = new["spec"]["template"]["spec"]
    for entries, entry in ((spec["domain"]["devices"]["interfaces"], interface), (spec["networks"], network)):
        for known in entries:
            if known["name"] == entry["name"]:
                known.update(entry)
                break
        else:
            entries.append(entry)
    return new


def cards(document: Json) -> tuple[Any, Any]:
    spec = document["spec"]["template"]["spec"]
    return spec["domain"]["devices"]["interfaces"], spec["networks"]


def test_new_binding_removes_default_binding() -> None:
    old = stored(bare())
    new = merged_by_name(old, {"name": "default", "bridge": {}}, {"name": "default", "pod": {}})
    interfaces, networks = cards(mutated(asked(new, old)))
    assert interfaces == [{"name": "default", "bridge": {}, "model": "virtio"}]
    assert networks == [{"name": "default", "pod": {}}]


def test_binding_set_by_user_is_kept() -> None:
    old = stored(bare())
    both = merged_by_name(old, {"name": "default", "bridge": {}}, {"name": "default", "pod": {}})
    says = {'k:{"name":"default"}': {".": {}, "f:masquerade": {}, "f:bridge": {}}}
    new = managed(both, {"f:template": {"f:spec": {"f:domain": {"f:devices": {"f:interfaces": says}}}}})
    assert list(refused(asked(new, old))) == ["spec.template.spec.domain.devices.interfaces[0]"]


def test_renamed_pod_network_removes_default_network() -> None:
    old = stored(bare())
    new = merged_by_name(old, {"name": "lan", "masquerade": {}}, {"name": "lan", "pod": {}})
    assert cards(mutated(asked(new, old))) == ([{"name": "lan", "masquerade": {}}], [{"name": "lan", "pod": {}}])


def test_secondary_network_keeps_default_network() -> None:
    old = stored(bare())
    new = merged_by_name(old, {"name": "lan", "bridge": {}}, {"name": "lan", "multus": {"networkName": "lan"}})
    assert [each["name"] for each in cards(mutated(asked(new, old)))[1]] == ["default", "lan"]


@pytest.mark.parametrize("what", ["spec", "template", "interfaces", "networks", "managedFields", "annotations"])
def test_malformed_objects_are_not_patched(what: str) -> None:
    old = stored(bare())
    new = changed(old, "spec/running", True)
    template = new["spec"]["template"]["spec"]
    places = {"spec": new, "template": new["spec"], "networks": template, "interfaces": template["domain"]["devices"]}
    where: Json = places.get(what, new["metadata"])
    for value in (None, 7, "x", [], [7], {}, {"a": {}}):
        where[what] = value
        removed = default_conflicts.operations(new, old)
        assert default_conflicts.without(new, removed) is not None
        kinds.mutate(asked(new, old), KubeVirtConfiguration(), NAMESPACE)
