"""A value that admission filled in gives way to what a person says later; one that the person wrote does not."""

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
    """A VM that says neither whether it runs nor what it joins."""
    document = machine()
    del document["spec"]["runStrategy"], document["spec"]["template"]["spec"]["networks"]
    del document["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"]
    return document


def noted(document: Json, manifest: Json) -> Json:
    """With the annotation that `kubectl apply` leaves of a manifest."""
    new = copy.deepcopy(document)
    new["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(manifest)}
    return new


def managed(document: Json, spec: Json) -> Json:
    """With the record that server-side apply leaves: the fields of the spec that a person applied."""
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
    """What the API server keeps of a manifest when it is created."""
    return mutated(asked(manifest))


def strategy(document: Json) -> tuple[Any, Any]:
    return document["spec"].get("runStrategy"), document["spec"].get("running")


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("how", ["kubectl apply", "server-side apply", "kubectl patch"])
def test_running_takes_the_place_of_the_strategy_that_was_filled_in(running: bool, how: str) -> None:
    old = noted(stored(bare()), bare()) if how == "kubectl apply" else stored(bare())
    new = changed(old, "spec/running", running)
    if how == "kubectl apply":
        new = noted(new, changed(bare(), "spec/running", running))
    elif how == "server-side apply":
        new = managed(new, {"f:running": {}, "f:template": {}})
    seen = mutated(asked(new, old))
    assert strategy(seen) == (None, running)
    # And back: without it the VM is halted as before.
    again = changed(seen, "spec/running", None)
    assert strategy(mutated(asked(again, seen))) == ("Halted", None)


def test_a_strategy_that_was_written_does_not_give_way() -> None:
    written = changed(bare(), "spec/runStrategy", "Halted")
    both = changed(written, "spec/running", False)
    for new in (noted(both, both), managed(both, {"f:running": {}, "f:runStrategy": {}})):
        assert set(refused(asked(new, noted(stored(written), written)))) == {"spec.runStrategy"}
    for other in ("Always", "Manual", "RerunOnFailure", "Once"):
        old = changed(bare(), "spec/runStrategy", other)
        assert set(refused(asked(changed(old, "spec/running", False), old))) == {"spec.runStrategy"}
    # Both at once, in a VM that is made: there is nothing that could give way.
    assert set(refused(asked(both))) == {"spec.runStrategy"}


def test_a_strategy_that_is_changed_in_the_same_breath_does_not_give_way() -> None:
    old = stored(bare())
    new = changed(changed(old, "spec/running", True), "spec/runStrategy", "Always")
    assert set(refused(asked(new, old))) == {"spec.runStrategy"}


def merged_by_name(old: Json, interface: Json, network: Json) -> Json:
    """As server-side apply merges lists that are maps by name."""
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


def test_a_binding_takes_the_place_of_the_one_that_was_filled_in() -> None:
    old = stored(bare())
    new = merged_by_name(old, {"name": "default", "bridge": {}}, {"name": "default", "pod": {}})
    interfaces, networks = cards(mutated(asked(new, old)))
    assert interfaces == [{"name": "default", "bridge": {}, "model": "virtio"}]
    assert networks == [{"name": "default", "pod": {}}]


def test_a_binding_that_was_written_does_not_give_way() -> None:
    old = stored(bare())
    both = merged_by_name(old, {"name": "default", "bridge": {}}, {"name": "default", "pod": {}})
    says = {'k:{"name":"default"}': {".": {}, "f:masquerade": {}, "f:bridge": {}}}
    new = managed(both, {"f:template": {"f:spec": {"f:domain": {"f:devices": {"f:interfaces": says}}}}})
    assert list(refused(asked(new, old))) == ["spec.template.spec.domain.devices.interfaces[0]"]


def test_the_pod_network_by_another_name_takes_the_place_of_the_one_that_was_filled_in() -> None:
    old = stored(bare())
    new = merged_by_name(old, {"name": "lan", "masquerade": {}}, {"name": "lan", "pod": {}})
    assert cards(mutated(asked(new, old))) == ([{"name": "lan", "masquerade": {}}], [{"name": "lan", "pod": {}}])


def test_a_further_network_leaves_the_stored_one() -> None:
    old = stored(bare())
    new = merged_by_name(old, {"name": "lan", "bridge": {}}, {"name": "lan", "multus": {"networkName": "lan"}})
    assert [each["name"] for each in cards(mutated(asked(new, old)))[1]] == ["default", "lan"]


@pytest.mark.parametrize("what", ["spec", "template", "interfaces", "networks", "managedFields", "annotations"])
def test_nonsense_is_left_to_validation(what: str) -> None:
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
