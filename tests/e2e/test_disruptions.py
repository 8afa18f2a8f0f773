"""Drain, eviction, preemption and node shutdown: the effect on a VM, and the reason reported (docs/nodes.md)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.manifests import booting, drive, idle, instance, tiny, virtual_machine
from tests.e2e.support import (
    SYSTEM,
    E2eNamespace,
    Json,
    Kubectl,
    KubectlError,
    VmUnderTest,
    assert_stays_true,
    conditions,
    project,
)
from tests.e2e.test_faults import prefer_node
from tests.e2e.test_scheduling import number
from tests.waiting import wait_for

pytestmark = pytest.mark.alone

PROTECTED = ["LiveMigrate", "External"]
REFUSED = r"evacuation|not live-migratable"
DEAD_PROBE = {"tcpSocket": {"port": 81}, "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 2}
"""A probe of a port on which no guest listens."""


def evict(machine: VmUnderTest, *flags: str) -> str:
    """The response of the Eviction API. Raises KubectlError on refusal."""
    name = machine.pod()["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": machine.space.name}}
    if flags:
        body["deleteOptions"] = {"dryRun": ["All"]}
    path = f"/api/v1/namespaces/{machine.space.name}/pods/{name}/eviction{'?dryRun=All' if flags else ''}"
    return machine.kubectl("create", f"--raw={path}", "-f", "-", stdin=json.dumps(body))


def assert_failed_with(machine: VmUnderTest, reason: str, seconds: float = 60) -> None:
    """Assert that the VMI is Failed, and that VMI, VM and an Event have the reason."""
    wait_for(
        lambda: machine.phase() == "Failed", "the instance has Failed", seconds=seconds, explain=machine.diagnostics
    )
    assert (machine.vmi() or {})["status"]["reason"] == reason, machine.diagnostics()
    told = wait_for(lambda: conditions(machine.vm()).get("Failure"), "the VM says so", explain=machine.diagnostics)
    assert told["reason"] == reason
    assert any(event.startswith(f"{reason}: ") for event in machine.events()), machine.diagnostics()


# ---- evictions


def test_evicted_manual_vm_fails_with_eviction_reason(space: E2eNamespace) -> None:
    machine = space.apply_vm(booting("evicted-manual", run="Manual"))
    machine.ask("Start")
    machine.until_status("Running").answer()
    with machine.follow_log() as said:
        evict(machine)
        assert "guest: powered off" in said()
    assert_failed_with(machine, "EvictionByEvictionAPI")
    machine.discard()


def test_evicted_rerun_on_failure_vm_is_restarted(space: E2eNamespace) -> None:
    machine = space.apply_vm(idle("evicted-rerun", run="RerunOnFailure")).until_status("Running")
    old = machine.uid()
    evict(machine)
    machine.until_replaced(old)
    assert any(event.startswith("EvictionByEvictionAPI: ") for event in machine.events()), machine.diagnostics()
    machine.discard()


def test_rerun_on_failure_vm_is_restarted_after_pod_deletion(space: E2eNamespace) -> None:
    machine = space.apply_vm(idle("deleted-rerun", run="RerunOnFailure")).until_status("Running")
    old = machine.uid()
    space.kubectl("delete", "pod", machine.pod()["metadata"]["name"], "--wait=false")
    machine.until_replaced(old)
    assert any(event.startswith("PodDeleted: ") for event in machine.events()), machine.diagnostics()
    machine.discard()


def test_eviction_of_protected_vm_is_refused_with_and_without_gateway(space: E2eNamespace) -> None:
    machines = {each: space.apply_vm(idle(f"protected-{each.lower()}", evictionStrategy=each)) for each in PROTECTED}
    uids = {strategy: machine.until_status("Running").uid() for strategy, machine in machines.items()}
    for strategy, machine in machines.items():
        for flags in (["--dry-run"], []):
            assert "evacuationNodeName" not in (machine.vmi() or {})["status"]
            with pytest.raises(KubectlError, match=REFUSED):
                evict(machine, *flags)
        marked = (machine.vmi() or {})["status"].get("evacuationNodeName")
        assert marked == (machine.node() if strategy == "External" else None)
    # A drain retries after 429 until its timeout.
    node = machines["LiveMigrate"].node()
    try:
        selector = "--pod-selector=vm.kubevirt.io/name=protected-livemigrate"
        with pytest.raises(KubectlError, match=r"timeout|timed out"):
            space.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", selector, "--timeout=8s")
    finally:
        space.kubectl("uncordon", node)
    system = space.kubectl.in_namespace(SYSTEM)
    system("scale", "deployment/hyperlet-gateway", "--replicas=0")
    try:
        wait_for(lambda: not system.items("pods", "--selector=kubevirt.io=virt-api"), "no gateway is left")
        for machine in machines.values():
            with pytest.raises(KubectlError, match="disruption budget"):
                evict(machine)
    finally:
        system("scale", "deployment/hyperlet-gateway", "--replicas=2")
        system("rollout", "status", "deployment/hyperlet-gateway", "--timeout=120s")
    for strategy, machine in machines.items():
        assert (machine.uid(), machine.status()) == (uids[strategy], "Running")
        machine.delete()
    wait_for(lambda: not space.kubectl.items("poddisruptionbudgets"), "their budgets go with them")


def test_vm_with_live_migrate_strategy_is_created_with_drain_warning(space: E2eNamespace) -> None:
    for manifest in (
        idle("warned", run="Halted", evictionStrategy="LiveMigrate"),
        instance("warned-instance", tiny(), evictionStrategy="LiveMigrate"),
    ):
        command = space.kubectl.command("create", "--dry-run=server", "-f", "-")
        done = subprocess.run(command, input=json.dumps(manifest), text=True, capture_output=True, check=True)
        assert "evictionStrategy is LiveMigrate" in done.stderr, done.stderr


# ---- what kubelet and scheduler do


@pytest.mark.parametrize("strategy", ["RerunOnFailure", "Once"])
def test_failed_liveness_probe_is_reported_as_reason(space: E2eNamespace, strategy: str) -> None:
    machine = space.apply_vm(booting(f"unwell-{strategy.lower()}", run=strategy, livenessProbe=DEAD_PROBE, grace=5))
    if strategy == "Once":
        assert_failed_with(machine, "LivenessProbeFailed", seconds=120)
    else:
        old = wait_for(machine.uid, "there is an instance")
        wait_for(
            lambda: machine.uid() not in ("", old), "it is started again", seconds=120, explain=machine.diagnostics
        )
        assert any(event.startswith("LivenessProbeFailed: ") for event in machine.events()), machine.diagnostics()
    machine.discard()


def free_cpu(kubectl: Kubectl, node: str) -> float:
    """CPUs of a node that no pod requests."""
    everything: Json = json.loads(kubectl("get", "pods", "-A", "-o", "json", f"--field-selector=spec.nodeName={node}"))
    asked = sum(
        number(container["resources"].get("requests", {}).get("cpu", "0"))
        for pod in everything["items"]
        if pod["status"].get("phase") not in ("Succeeded", "Failed")
        for container in pod["spec"]["containers"]
    )
    return number((kubectl.get("node", node) or {})["status"]["allocatable"]["cpu"]) - asked


@pytest.fixture
def preempting_class(space: E2eNamespace) -> Iterator[str]:
    """A priority class above that of VMs."""
    name = f"preempting-{space.name}"
    made = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 1000}
    space.apply(made)
    yield name
    space.kubectl("delete", "priorityclass", name)


def test_preempted_vm_reports_preemption_and_is_recreated(space: E2eNamespace, preempting_class: str) -> None:
    share = int(free_cpu(space.kubectl, "node2") * 1000) - 100
    asking = {"resources": {"requests": {"cpu": f"{share}m"}}}
    machine = space.apply_vm(
        idle("preempted", run="RerunOnFailure", domain=asking, affinity={"nodeAffinity": prefer_node("node2")})
    )
    assert machine.until_status("Running").node() == "node2"
    old = machine.uid()
    spec = {
        "priorityClassName": preempting_class,
        "nodeSelector": {"kubernetes.io/hostname": "node2"},
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "hyperlet.local/pause:1", "resources": {"requests": {"cpu": "300m"}}}],
    }
    space.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "urgent"}, "spec": spec})
    try:
        wait_for(lambda: machine.uid() not in ("", old), "it is made again", explain=machine.diagnostics)
        assert any(event.startswith("PreemptionByScheduler: ") for event in machine.events()), machine.diagnostics()
    finally:
        space.kubectl("delete", "pod", "urgent", "--grace-period=0", "--force")
    machine.until_status("Running")
    machine.discard()


def test_vm_evicted_by_kubelet_fails_with_evicted_reason(space: E2eNamespace) -> None:
    """A full emptyDir is what the kubelet evicts for on a node whose own disk has room; pressure takes the same way."""
    scratch = drive("scratch", {"emptyDisk": {"capacity": "8Mi"}})  # no overlay, so that the emptyDir has a limit
    machine = space.apply_vm(virtual_machine("overfull", scratch, run="Manual", memory="64Mi", network=False, grace=1))
    machine.ask("Start")
    pod, node = machine.until_status("Running").pod(), machine.node()
    (limit,) = [each["emptyDir"]["sizeLimit"] for each in pod["spec"]["volumes"] if each["name"] == "hyperlet"]
    folder = f"/var/lib/kubelet/pods/{pod['metadata']['uid']}/volumes/kubernetes.io~empty-dir/hyperlet"
    size = str(int(number(limit)) + (64 << 20))
    project("cluster", "exec", node, "--", "fallocate", "-l", size, f"{folder}/filler")
    assert_failed_with(machine, "Evicted", seconds=120)
    machine.discard()


# ---- a node that is shut down


def ready(kubectl: Kubectl, node: str) -> bool:
    return bool(conditions(kubectl.get("node", node))["Ready"]["status"] == "True")


def test_node_shutdown_powers_off_guests_and_vm_starts_on_other_node(space: E2eNamespace) -> None:
    kubectl = space.kubectl
    always = space.apply_vm(booting("shut-always", affinity={"nodeAffinity": prefer_node("node2")}))
    manual = space.apply_vm(idle("shut-manual", run="Manual", affinity={"nodeAffinity": prefer_node("node2")}))
    manual.ask("Start")
    assert [machine.until_status("Running").node() for machine in (always, manual)] == ["node2", "node2"]
    before = always.answer()
    with always.follow_log() as said:
        try:
            project("cluster", "shutdown", "node2")
            assert "guest: powered off" in said()
            # One copy only: it starts on the other node because the kubelet has reported its pod as ended.
            assert always.answer(other_than=before["bootId"], seconds=150)["bootId"]
            assert always.until_status("Running").node() == "node1" and len(always.active_pods()) == 1
            # The kubelet sets its own reason only if the launcher has failed.
            assert_failed_with(manual, "TerminationByKubelet")
            assert "shutdown" in " ".join(manual.user_messages())
        finally:
            project("cluster", "on", "node2")
    wait_for(lambda: ready(kubectl, "node2"), "the node is back", seconds=90)
    assert_stays_true(lambda: len(always.active_pods()) == 1, "one copy", seconds=4)
    for machine in (always, manual):
        machine.discard()
