"""Drained, evicted, preempted, shut down with its node: what each does to a VM, and that it is told (docs/nodes.md)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.manifests import booting, drive, idle, instance, tiny, virtual_machine
from tests.e2e.support import SYSTEM, Json, Kubectl, KubectlError, Machine, Space, conditions, project, stays
from tests.e2e.test_faults import rather_on as preferring
from tests.e2e.test_scheduling import number
from tests.waiting import wait_for

pytestmark = pytest.mark.alone

PROTECTED = ["LiveMigrate", "External"]
REFUSED = r"evacuation|not live-migratable"
DEAD_PROBE = {"tcpSocket": {"port": 81}, "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 2}
"""A port that no guest listens at."""


def evict(machine: Machine, *flags: str) -> str:
    """The Eviction API's answer. Raises KubectlError when it refuses."""
    name = machine.pod()["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": machine.space.name}}
    if flags:
        body["deleteOptions"] = {"dryRun": ["All"]}
    path = f"/api/v1/namespaces/{machine.space.name}/pods/{name}/eviction{'?dryRun=All' if flags else ''}"
    return machine.kubectl("create", f"--raw={path}", "-f", "-", stdin=json.dumps(body))


def failed_with(machine: Machine, reason: str, seconds: float = 60) -> None:
    """The instance has ended Failed, and instance, VM and Event name the cause."""
    wait_for(lambda: machine.phase() == "Failed", "the instance has Failed", seconds=seconds, explain=machine.story)
    assert (machine.vmi() or {})["status"]["reason"] == reason, machine.story()
    told = wait_for(lambda: conditions(machine.vm()).get("Failure"), "the VM says so", explain=machine.story)
    assert told["reason"] == reason
    assert any(event.startswith(f"{reason}: ") for event in machine.events()), machine.story()


# ---- evictions


def test_an_eviction_fails_a_manual_vm_with_its_cause(space: Space) -> None:
    machine = space.machine(booting("evicted-manual", run="Manual"))
    machine.ask("Start")
    machine.until_status("Running").answer()
    with machine.followed() as said:
        evict(machine)
        assert "guest: powered off" in said()
    failed_with(machine, "EvictionByEvictionAPI")
    machine.discard()


def test_an_eviction_starts_a_rerun_on_failure_vm_again(space: Space) -> None:
    machine = space.machine(idle("evicted-rerun", run="RerunOnFailure")).until_status("Running")
    old = machine.uid()
    evict(machine)
    machine.until_replaced(old)
    assert any(event.startswith("EvictionByEvictionAPI: ") for event in machine.events()), machine.story()
    machine.discard()


def test_a_deleted_pod_starts_a_rerun_on_failure_vm_again(space: Space) -> None:
    machine = space.machine(idle("deleted-rerun", run="RerunOnFailure")).until_status("Running")
    old = machine.uid()
    space.kubectl("delete", "pod", machine.pod()["metadata"]["name"], "--wait=false")
    machine.until_replaced(old)
    assert any(event.startswith("PodDeleted: ") for event in machine.events()), machine.story()
    machine.discard()


def test_protected_vms_are_not_evicted_with_and_without_gateway(space: Space) -> None:
    machines = {each: space.machine(idle(f"protected-{each.lower()}", evictionStrategy=each)) for each in PROTECTED}
    uids = {strategy: machine.until_status("Running").uid() for strategy, machine in machines.items()}
    for strategy, machine in machines.items():
        for flags in (["--dry-run"], []):
            assert "evacuationNodeName" not in (machine.vmi() or {})["status"]
            with pytest.raises(KubectlError, match=REFUSED):
                evict(machine, *flags)
        marked = (machine.vmi() or {})["status"].get("evacuationNodeName")
        assert marked == (machine.node() if strategy == "External" else None)
    # A drain takes 429 for "later": it tries until its time is over.
    node = machines["LiveMigrate"].node()
    try:
        selector = "--pod-selector=vm.kubevirt.io/name=protected-livemigrate"
        with pytest.raises(KubectlError, match=r"timeout|timed out"):
            space.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", selector, "--timeout=8s")
    finally:
        space.kubectl("uncordon", node)
    system = space.kubectl.within(SYSTEM)
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


def test_what_a_drain_will_do_is_told_when_the_vm_is_made(space: Space) -> None:
    for manifest in (
        idle("warned", run="Halted", evictionStrategy="LiveMigrate"),
        instance("warned-instance", tiny(), evictionStrategy="LiveMigrate"),
    ):
        command = space.kubectl.command("create", "--dry-run=server", "-f", "-")
        done = subprocess.run(command, input=json.dumps(manifest), text=True, capture_output=True, check=True)
        assert "evictionStrategy is LiveMigrate" in done.stderr, done.stderr


# ---- what kubelet and scheduler do


@pytest.mark.parametrize("strategy", ["RerunOnFailure", "Once"])
def test_a_failed_liveness_probe_is_named(space: Space, strategy: str) -> None:
    machine = space.machine(booting(f"unwell-{strategy.lower()}", run=strategy, livenessProbe=DEAD_PROBE, grace=5))
    if strategy == "Once":
        failed_with(machine, "LivenessProbeFailed", seconds=120)
    else:
        old = wait_for(machine.uid, "there is an instance")
        wait_for(lambda: machine.uid() not in ("", old), "it is started again", seconds=120, explain=machine.story)
        assert any(event.startswith("LivenessProbeFailed: ") for event in machine.events()), machine.story()
    machine.discard()


def free_cpu(kubectl: Kubectl, node: str) -> float:
    """CPUs of a node that no pod has asked for."""
    everything: Json = json.loads(kubectl("get", "pods", "-A", "-o", "json", f"--field-selector=spec.nodeName={node}"))
    asked = sum(
        number(container["resources"].get("requests", {}).get("cpu", "0"))
        for pod in everything["items"]
        if pod["status"].get("phase") not in ("Succeeded", "Failed")
        for container in pod["spec"]["containers"]
    )
    return number((kubectl.get("node", node) or {})["status"]["allocatable"]["cpu"]) - asked


@pytest.fixture
def urgent(space: Space) -> Iterator[str]:
    """A priority class above that of VMs."""
    name = f"preempting-{space.name}"
    made = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 1000}
    space.apply(made)
    yield name
    space.kubectl("delete", "priorityclass", name)


def test_a_preempted_vm_says_so_and_starts_elsewhere(space: Space, urgent: str) -> None:
    share = int(free_cpu(space.kubectl, "node2") * 1000) - 100
    asking = {"resources": {"requests": {"cpu": f"{share}m"}}}
    machine = space.machine(
        idle("preempted", run="RerunOnFailure", domain=asking, affinity={"nodeAffinity": preferring("node2")})
    )
    assert machine.until_status("Running").node() == "node2"
    old = machine.uid()
    spec = {
        "priorityClassName": urgent,
        "nodeSelector": {"kubernetes.io/hostname": "node2"},
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "hyperlet.local/pause:1", "resources": {"requests": {"cpu": "300m"}}}],
    }
    space.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "urgent"}, "spec": spec})
    try:
        wait_for(lambda: machine.uid() not in ("", old), "it is made again", explain=machine.story)
        assert any(event.startswith("PreemptionByScheduler: ") for event in machine.events()), machine.story()
    finally:
        space.kubectl("delete", "pod", "urgent", "--grace-period=0", "--force")
    machine.until_status("Running")
    machine.discard()


def test_a_pod_that_its_kubelet_evicts_is_named(space: Space) -> None:
    """A full emptyDir is what the kubelet evicts for on a node whose own disk has room; pressure takes the same way."""
    scratch = drive("scratch", {"emptyDisk": {"capacity": "8Mi"}})  # no overlay, so that the emptyDir has a limit
    machine = space.machine(virtual_machine("overfull", scratch, run="Manual", memory="64Mi", network=False, grace=1))
    machine.ask("Start")
    pod, node = machine.until_status("Running").pod(), machine.node()
    (limit,) = [each["emptyDir"]["sizeLimit"] for each in pod["spec"]["volumes"] if each["name"] == "hyperlet"]
    folder = f"/var/lib/kubelet/pods/{pod['metadata']['uid']}/volumes/kubernetes.io~empty-dir/hyperlet"
    size = str(int(number(limit)) + (64 << 20))
    project("cluster", "exec", node, "--", "fallocate", "-l", size, f"{folder}/filler")
    failed_with(machine, "Evicted", seconds=120)
    machine.discard()


# ---- a node that is shut down


def ready(kubectl: Kubectl, node: str) -> bool:
    return bool(conditions(kubectl.get("node", node))["Ready"]["status"] == "True")


def test_a_node_that_is_shut_down_ends_its_guests_gracefully_first(space: Space) -> None:
    kubectl = space.kubectl
    always = space.machine(booting("shut-always", affinity={"nodeAffinity": preferring("node2")}))
    manual = space.machine(idle("shut-manual", run="Manual", affinity={"nodeAffinity": preferring("node2")}))
    manual.ask("Start")
    assert [machine.until_status("Running").node() for machine in (always, manual)] == ["node2", "node2"]
    before = always.answer()
    with always.followed() as said:
        try:
            project("cluster", "shutdown", "node2")
            assert "guest: powered off" in said()
            # Never two: it starts elsewhere because its pod has ended by the kubelet's word.
            assert always.answer(other_than=before["bootId"], seconds=150)["bootId"]
            assert always.until_status("Running").node() == "node1" and len(always.living()) == 1
            # The kubelet has a word of its own for it only where the launcher did not end well.
            failed_with(manual, "TerminationByKubelet")
            assert "shutdown" in " ".join(manual.words())
        finally:
            project("cluster", "on", "node2")
    wait_for(lambda: ready(kubectl, "node2"), "the node is back", seconds=90)
    stays(lambda: len(always.living()) == 1, "one copy", seconds=4)
    for machine in (always, manual):
        machine.discard()
