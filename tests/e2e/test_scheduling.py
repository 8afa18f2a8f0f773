"""Kubernetes places the machine, limits it and accounts for it; the user reads why it did not."""

from __future__ import annotations

import json

import pytest

from tests.e2e.manifests import idle
from tests.e2e.support import SYSTEM, Json, Space, conditions, new_space
from tests.waiting import wait_for

UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 10**3, "M": 10**6, "G": 10**9, "m": 1e-3}


def number(quantity: str) -> float:
    """A Kubernetes quantity as a number."""
    for unit, factor in UNITS.items():
        if quantity.endswith(unit):
            return float(quantity.removesuffix(unit)) * factor
    return float(quantity)


def on_node(name: str) -> Json:
    """Affinity to one node."""
    rule = {"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}}


def away_from(app: str) -> Json:
    """Anti-affinity to the machines labelled app."""
    term = {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "kubernetes.io/hostname"}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def test_affinity_lands_where_it_says(space: Space) -> None:
    first = space.machine(idle("first", affinity={"nodeAffinity": on_node("node2")}))
    second = space.machine(idle("second", affinity={"podAntiAffinity": away_from("first")}))
    assert first.until_status("Running").node() == "node2"
    assert second.until_status("Running").node() == "node1"
    first.discard()
    second.discard()


def test_a_selector_nothing_matches_is_told_in_the_schedulers_words(space: Space) -> None:
    lost = space.machine(idle("lost", nodeSelector={"e2e.test/no-such-label": "yes"}))
    lost.until_status("ErrorUnschedulable")
    told = lost.until_told("nodes are available")
    assert "node" in told and "0/2" in told, told
    # A label appears on a node: the machine starts without anybody touching it.
    space.kubectl("label", "node", "node1", "e2e.test/no-such-label=yes")
    try:
        assert lost.until_status("Running").node() == "node1"
    finally:
        space.kubectl("label", "node", "node1", "e2e.test/no-such-label-")
    lost.discard()


@pytest.mark.alone
def test_a_machine_that_waits_for_kvm_starts_when_emulation_is_allowed(space: Space) -> None:
    """Alone: meanwhile no other machine could start."""
    if "true" in (node["metadata"]["labels"].get("hyperlet/kvm") for node in space.kubectl.items("nodes")):
        pytest.skip("a node has KVM")

    def allow(yes: bool) -> None:
        patch = {"spec": {"configuration": {"developerConfiguration": {"useEmulation": yes}}}}
        space.kubectl.within(SYSTEM)("patch", "kubevirt", "kubevirt", "--type=merge", f"--patch={json.dumps(patch)}")

    allow(False)
    try:
        patient = space.machine(idle("patient"))
        patient.until_status("ErrorUnschedulable")
        assert "devices.kubevirt.io/kvm" in patient.until_told("nodes are available")
    finally:
        allow(True)
    patient.until_status("Running")
    assert len(patient.pods()) == 1, patient.story()
    patient.discard()


def test_an_exceeded_quota_is_told_and_a_raised_one_is_noticed(space: Space) -> None:
    poor = new_space(space.kubectl, "poor")
    try:
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "thrift"},
            "spec": {"hard": {"pods": "0"}},
        }
        poor.apply(quota)
        wait_for(lambda: (poor.kubectl.get("quota", "thrift") or {})["status"].get("hard"), "the quota is in force")
        machine = poor.machine(idle("dear"))
        told = machine.until_told("exceeded quota", "thrift")
        assert "pods" in told
        assert any("exceeded quota" in event for event in machine.events()), "no Event tells of the quota"
        assert any("exceeded quota" in c.get("message", "") for c in conditions(machine.vm()).values()), (
            f"the VM's conditions do not tell of the quota\n{machine.story()}"
        )
        poor.kubectl("delete", "quota", "thrift")
        machine.until_status("Running", seconds=120)
        machine.discard()
    finally:
        poor.clear()


def test_the_pod_asks_for_the_guests_memory_and_what_comes_on_top(space: Space) -> None:
    plain = space.machine(idle("plain", domain={"cpu": {"cores": 2}})).until_status("Running")
    pod, vmi = plain.pod(), plain.vmi()
    assert vmi
    requests = pod["spec"]["containers"][0]["resources"]["requests"]
    overhead = number(requests["memory"]) - (64 << 20)
    assert 48 << 20 <= overhead <= 256 << 20
    assert number(vmi["status"]["memory"]["memoryOverhead"]) == overhead
    assert number(requests["cpu"]) == 0.2  # a tenth of every vCPU
    assert requests["devices.kubevirt.io/tun"] == "1"
    assert vmi["status"]["qosClass"] == pod["status"]["qosClass"] == "Burstable"
    assert vmi["status"]["currentCPUTopology"]["cores"] == 2
    plain.discard()


def test_limits_equal_to_requests_make_a_guaranteed_pod(space: Space) -> None:
    amount = {"cpu": "200m", "memory": "64Mi"}
    sure = space.machine(idle("sure", domain={"resources": {"requests": amount, "limits": amount}})).until_status(
        "Running"
    )
    pod, vmi = sure.pod(), sure.vmi()
    assert vmi and vmi["status"]["qosClass"] == pod["status"]["qosClass"] == "Guaranteed"
    resources = pod["spec"]["containers"][0]["resources"]
    assert number(resources["requests"]["memory"]) == number(resources["limits"]["memory"]) > 64 << 20
    sure.discard()


def test_tolerations_and_priority_reach_the_pod(space: Space) -> None:
    name = f"urgent-{space.name}"
    urgent = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 7}
    space.apply(urgent)
    toleration = {"key": "e2e.test/none", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
    try:
        machine = space.machine(idle("urgent", priorityClassName=name, tolerations=[toleration])).until_status(
            "Running"
        )
        spec = machine.pod()["spec"]
        assert spec["priority"] == 7
        assert toleration in spec["tolerations"]
        machine.discard()
    finally:
        space.kubectl("delete", "priorityclass", name)
