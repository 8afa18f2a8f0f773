"""Scheduling, quotas and resources of VMs, and the messages if a VM cannot be scheduled."""

from __future__ import annotations

import json

import pytest

from tests.e2e.manifests import idle
from tests.e2e.support import SYSTEM, E2eNamespace, Json, conditions, create_namespace
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
    """Anti-affinity to the VMs with the label `app`."""
    term = {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "kubernetes.io/hostname"}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def test_vm_with_affinity_runs_on_matching_node(space: E2eNamespace) -> None:
    first = space.apply_vm(idle("first", affinity={"nodeAffinity": on_node("node2")}))
    second = space.apply_vm(idle("second", affinity={"podAntiAffinity": away_from("first")}))
    assert first.until_status("Running").node() == "node2"
    assert second.until_status("Running").node() == "node1"
    first.discard()
    second.discard()


def test_unmatched_node_selector_is_reported_and_vm_starts_once_node_is_labelled(space: E2eNamespace) -> None:
    lost = space.apply_vm(idle("lost", nodeSelector={"e2e.test/no-such-label": "yes"}))
    lost.until_status("ErrorUnschedulable")
    told = lost.until_message("nodes are available")
    assert "node" in told and "0/2" in told, told
    # A node gets the label: the VM starts without further action.
    space.kubectl("label", "node", "node1", "e2e.test/no-such-label=yes")
    try:
        assert lost.until_status("Running").node() == "node1"
    finally:
        space.kubectl("label", "node", "node1", "e2e.test/no-such-label-")
    lost.discard()


@pytest.mark.alone
def test_vm_waiting_for_kvm_starts_when_emulation_is_allowed(space: E2eNamespace) -> None:
    """Alone, because no other VM can start meanwhile."""
    if "true" in (node["metadata"]["labels"].get("hyperlet/kvm") for node in space.kubectl.items("nodes")):
        pytest.skip("a node has KVM")

    def allow(yes: bool) -> None:
        patch = {"spec": {"configuration": {"developerConfiguration": {"useEmulation": yes}}}}
        space.kubectl.in_namespace(SYSTEM)(
            "patch", "kubevirt", "kubevirt", "--type=merge", f"--patch={json.dumps(patch)}"
        )

    allow(False)
    try:
        patient = space.apply_vm(idle("patient"))
        patient.until_status("ErrorUnschedulable")
        assert "devices.kubevirt.io/kvm" in patient.until_message("nodes are available")
    finally:
        allow(True)
    patient.until_status("Running")
    assert len(patient.pods()) == 1, patient.diagnostics()
    patient.discard()


def test_exceeded_quota_is_reported_and_vm_starts_once_quota_is_removed(space: E2eNamespace) -> None:
    poor = create_namespace(space.kubectl, "poor")
    try:
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "thrift"},
            "spec": {"hard": {"pods": "0"}},
        }
        poor.apply(quota)
        wait_for(lambda: (poor.kubectl.get("quota", "thrift") or {})["status"].get("hard"), "the quota is in force")
        machine = poor.apply_vm(idle("dear"))
        told = machine.until_message("exceeded quota", "thrift")
        assert "pods" in told
        assert any("exceeded quota" in event for event in machine.events()), "no Event tells of the quota"
        assert any("exceeded quota" in c.get("message", "") for c in conditions(machine.vm()).values()), (
            f"the VM's conditions do not tell of the quota\n{machine.diagnostics()}"
        )
        poor.kubectl("delete", "quota", "thrift")
        machine.until_status("Running", seconds=120)
        machine.discard()
    finally:
        poor.clear()


def test_pod_requests_guest_memory_plus_overhead(space: E2eNamespace) -> None:
    plain = space.apply_vm(idle("plain", domain={"cpu": {"cores": 2}})).until_status("Running")
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


def test_vm_with_limits_equal_to_requests_has_guaranteed_pod(space: E2eNamespace) -> None:
    amount = {"cpu": "200m", "memory": "64Mi"}
    sure = space.apply_vm(idle("sure", domain={"resources": {"requests": amount, "limits": amount}})).until_status(
        "Running"
    )
    pod, vmi = sure.pod(), sure.vmi()
    assert vmi and vmi["status"]["qosClass"] == pod["status"]["qosClass"] == "Guaranteed"
    resources = pod["spec"]["containers"][0]["resources"]
    assert number(resources["requests"]["memory"]) == number(resources["limits"]["memory"]) > 64 << 20
    sure.discard()


def test_tolerations_and_priority_are_set_on_pod(space: E2eNamespace) -> None:
    name = f"urgent-{space.name}"
    urgent = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 7}
    space.apply(urgent)
    toleration = {"key": "e2e.test/none", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
    try:
        machine = space.apply_vm(idle("urgent", priorityClassName=name, tolerations=[toleration])).until_status(
            "Running"
        )
        spec = machine.pod()["spec"]
        assert spec["priority"] == 7
        assert toleration in spec["tolerations"]
        machine.discard()
    finally:
        space.kubectl("delete", "priorityclass", name)
