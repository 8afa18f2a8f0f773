"""Changes of a VM's template: applied live where possible; the others are reported as pending until restart."""

from __future__ import annotations

import json

import pytest

from tests.e2e.manifests import booting, idle
from tests.e2e.support import E2eNamespace, Json, KubectlError, conditions
from tests.waiting import wait_for

NOWHERE = {"e2e.test/no-such-label": "yes"}


def generations(vm: Json) -> tuple[int, int]:
    return vm["metadata"]["generation"], vm["status"].get("observedGeneration", 0)


def test_changed_labels_and_annotations_reach_running_pod_without_restart(space: E2eNamespace) -> None:
    machine = space.apply_vm(booting("labelled", labels={"tier": "front"}, annotations={"team": "blue"}))
    machine.until_status("Running")
    first, uid, pod = machine.answer(), machine.uid(), machine.pod()["metadata"]["name"]
    space.kubectl("label", "pod", pod, "others=label")
    change = {"labels": {"tier": "back", "new": "yes"}, "annotations": {"team": None, "note": "x"}}
    machine.patch({"spec": {"template": {"metadata": change}}})

    def carried() -> bool:
        found = [machine.vmi() or {}, machine.pod()]
        labels = [each["metadata"]["labels"] for each in found]
        annotations = [each["metadata"]["annotations"] for each in found]
        return all(each.get("tier") == "back" and each.get("new") == "yes" for each in labels) and all(
            each.get("note") == "x" and "team" not in each for each in annotations
        )

    wait_for(carried, "labels and annotations are on instance and pod", explain=machine.diagnostics)
    wait_for(lambda: len(set(generations(machine.vm() or {}))) == 1, "nothing is pending", explain=machine.diagnostics)
    assert "RestartRequired" not in conditions(machine.vm())
    assert machine.pod()["metadata"]["labels"]["others"] == "label"
    assert (machine.uid(), machine.guest().report()["bootId"]) == (uid, first["bootId"])
    # An annotation that is only read at pod creation is reported as pending.
    machine.patch({"spec": {"template": {"metadata": {"annotations": {"kubernetes.io/ingress-bandwidth": "10M"}}}}})
    machine.until_condition_message("metadata.annotations[kubernetes.io/ingress-bandwidth]", "restart")
    generation, observed = generations(machine.vm() or {})
    assert observed < generation
    machine.discard()


@pytest.mark.parametrize("strategy", ["Always", "Manual", "RerunOnFailure", "Once"])
def test_node_selector_corrected_before_start_needs_no_restart(space: E2eNamespace, strategy: str) -> None:
    machine = space.apply_vm(idle(f"mended-{strategy.lower()}", run=strategy, nodeSelector=NOWHERE))
    if strategy == "Manual":
        machine.ask("Start")
    machine.until_status("ErrorUnschedulable")
    machine.patch({"spec": {"template": {"spec": {"nodeSelector": {**dict.fromkeys(NOWHERE)}}}}})
    machine.until_status("Running")
    assert len(machine.pods()) == 1, machine.diagnostics()
    assert "RestartRequired" not in conditions(machine.vm())
    machine.discard()


@pytest.mark.parametrize("how", [[], ["--server-side"]], ids=["client-side", "server-side"])
def test_applied_run_strategy_replaces_admission_default(space: E2eNamespace, how: list[str]) -> None:
    manifest = idle("filled" + "-".join(how).replace("--", "-"), run=None)

    def applied(**spec: object) -> Json:
        document = {**manifest, "spec": {**manifest["spec"], **spec}}
        space.kubectl("apply", *how, "-f", "-", stdin=json.dumps(document))
        found = space.kubectl.get("vm", manifest["metadata"]["name"])
        assert found is not None
        return {key: found["spec"].get(key) for key in ("running", "runStrategy")}

    assert applied() == {"running": None, "runStrategy": "Halted"}
    assert applied(running=False) == {"running": False, "runStrategy": None}
    assert applied(running=True) == {"running": True, "runStrategy": None}
    machine = space.existing_vm(manifest["metadata"]["name"])
    machine.until_status("Running")
    assert applied() == {"running": None, "runStrategy": "Halted"}
    # A value that the user set is not replaced.
    assert applied(runStrategy="Halted") == {"running": None, "runStrategy": "Halted"}
    with pytest.raises(KubectlError, match="are mutually exclusive"):
        applied(runStrategy="Halted", running=True)
    machine.discard()
