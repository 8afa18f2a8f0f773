"""Faults of every component, daemon and node: guests continue to run, or restart as specified."""

from __future__ import annotations

import itertools
import random
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.e2e.manifests import booting, idle
from tests.e2e.processes import Process, processes, wait_for_process, wait_for_replacement
from tests.e2e.support import (
    SYSTEM,
    E2eNamespace,
    Json,
    Kubectl,
    VmUnderTest,
    assert_stays_true,
    conditions,
    container_statuses,
    project,
)
from tests.waiting import wait_for

pytestmark = pytest.mark.alone

HANDLER = "kubevirt.io=virt-handler"
CONTROLLER = "kubevirt.io=virt-controller"


@pytest.fixture(scope="module")
def long_running_vm(space: E2eNamespace) -> Iterator[VmUnderTest]:
    """The VM that runs through all tests, on the node that is not powered off."""
    machine = space.apply_vm(booting("survivor", nodeSelector={"kubernetes.io/hostname": "node1"}))
    machine.until_status("Running")
    machine.answer()
    yield machine
    machine.discard()


@pytest.fixture(scope="module")
def initial_report(long_running_vm: VmUnderTest) -> Json:
    """The report of its guest before the first fault."""
    return long_running_vm.answer()


def system_pod(kubectl: Kubectl, selector: str, node: str = "") -> Json:
    """The running pod of a component (on a node)."""
    found = [
        pod
        for pod in kubectl.in_namespace(SYSTEM).items("pods", f"--selector={selector}")
        if pod["status"].get("phase") == "Running" and (not node or pod["spec"]["nodeName"] == node)
    ]
    assert found, f"no pod {selector} runs on {node or 'any node'}"
    return found[0]


def leader(kubectl: Kubectl) -> Json:
    """The pod of the leading controller, by its Lease."""
    system = kubectl.in_namespace(SYSTEM)
    holders = [lease["spec"].get("holderIdentity") or "" for lease in system.items("leases")]
    pods = system.items("pods", f"--selector={CONTROLLER}")
    return next(pod for pod in pods if any(holder.startswith(pod["metadata"]["name"]) for holder in holders))


def restarts(pod: Json) -> int:
    return sum(container["restartCount"] for container in container_statuses(pod))


def assert_guest_unaffected(machine: VmUnderTest, before: Json) -> None:
    """Assert that the guest continues to run: same boot id, growing counter, status Running and Ready."""
    boot, counter = before["bootId"], before["counter"]
    wait_for(
        lambda: machine.guest().report()["counter"] > counter, "the guest's counter grows", explain=machine.diagnostics
    )
    assert machine.guest().report()["bootId"] == boot, f"the guest was restarted\n{machine.diagnostics()}"
    wait_for(
        lambda: machine.status() == "Running" and conditions(machine.vmi())["Ready"]["status"] == "True",
        f"{machine.name} is Running and Ready",
        explain=machine.diagnostics,
    )


def assert_new_vm_starts_and_stops(space: E2eNamespace) -> None:
    """Assert that a new VM can be started and stopped, so the killed component works again."""
    name = f"probe-{int(time.monotonic() * 1000) % 10**8}"
    probe = space.apply_vm(idle(name)).until_status("Running")
    probe.delete()


# ---- inside the pod


@pytest.mark.parametrize("which", ["gRPC server", "libvirt"])
def test_killed_pod_helper_is_restarted_and_guest_continues_running(
    long_running_vm: VmUnderTest, initial_report: Json, which: str
) -> None:
    chosen: Callable[[Process], bool] = {"gRPC server": lambda p: p.is_server, "libvirt": lambda p: p.is_libvirt}[which]
    pod = long_running_vm.pod()
    qemu = wait_for_process(pod, lambda process: process.is_qemu)
    victim = wait_for_process(pod, chosen)
    victim.kill()
    wait_for_replacement(pod, victim, chosen)
    assert qemu.is_alive()
    assert_guest_unaffected(long_running_vm, initial_report)


@pytest.mark.parametrize("which", ["gRPC server", "libvirt"])
def test_stop_after_killed_pod_helper_powers_off_guest(space: E2eNamespace, which: str) -> None:
    chosen: Callable[[Process], bool] = {"gRPC server": lambda p: p.is_server, "libvirt": lambda p: p.is_libvirt}[which]
    machine = space.apply_vm(booting("obedient-" + which.split()[-1])).until_status("Running")
    machine.answer()
    victim = wait_for_process(machine.pod(), chosen)
    with machine.follow_log() as said:
        victim.kill()
        machine.run("Halted")  # at once: the helper is not restarted yet
        machine.until_stopped()
        assert "guest: powered off" in said()
    machine.discard()


def test_killed_qemu_fails_vmi_and_always_vm_restarts(space: E2eNamespace) -> None:
    phoenix = space.apply_vm(booting("phoenix")).until_status("Running")
    first = phoenix.answer()
    old = phoenix.uid()
    wait_for_process(phoenix.pod(), lambda process: process.is_qemu).kill()
    phoenix.until_message("Crashed")
    assert phoenix.answer(other_than=first["bootId"])["bootId"] != first["bootId"]
    phoenix.until_status("Running")
    assert phoenix.uid() not in ("", old)
    phoenix.discard()


def test_killed_supervisor_ends_pod_and_always_vm_restarts(space: E2eNamespace) -> None:
    orphan = space.apply_vm(idle("orphan")).until_status("Running")
    old = orphan.uid()
    wait_for_process(orphan.pod(), lambda process: process.is_supervisor).kill()
    orphan.until_replaced(old)
    orphan.discard()


# ---- controller and handler


@pytest.mark.parametrize("component", ["handler", "controller"])
def test_killed_component_is_restarted_and_guest_continues_running(
    space: E2eNamespace, long_running_vm: VmUnderTest, component: str
) -> None:
    kubectl = space.kubectl
    pod = leader(kubectl) if component == "controller" else system_pod(kubectl, HANDLER, long_running_vm.node())
    before = long_running_vm.answer()
    name, count = pod["metadata"]["name"], restarts(pod)
    for process in processes(pod):
        if process.command.split("\0")[-2:-1] == [component]:
            process.kill()
            break
    else:
        raise AssertionError(f"no process of the {component}: {[p.command for p in processes(pod)]}")
    wait_for(
        lambda: (
            restarts(kubectl.in_namespace(SYSTEM).get("pod", name) or {}) > count
            and conditions(kubectl.in_namespace(SYSTEM).get("pod", name))["Ready"]["status"] == "True"
        ),
        f"the {component} is started again and Ready",
        seconds=90,
    )
    assert_guest_unaffected(long_running_vm, before)
    assert_new_vm_starts_and_stops(space)


def test_guest_end_during_handler_restart_fails_vmi(space: E2eNamespace) -> None:
    """Handler and QEMU are killed at the same time: the VMI must still become Failed."""
    lonely = space.apply_vm(idle("lonely", run="Once")).until_status("Running")
    handler = system_pod(space.kubectl, HANDLER, lonely.node())
    qemu = wait_for_process(lonely.pod(), lambda process: process.is_qemu)
    wait_for_process(handler, lambda process: process.command.endswith("\0handler\0")).kill()
    qemu.kill()
    wait_for(lambda: lonely.phase() in ("Failed", ""), "the instance has Failed", explain=lonely.diagnostics)
    lonely.discard()


def test_handler_rollout_keeps_guest_running(space: E2eNamespace, long_running_vm: VmUnderTest) -> None:
    system = space.kubectl.in_namespace(SYSTEM)
    before = long_running_vm.answer()
    handlers = system.items("daemonsets", f"--selector={HANDLER}") or system.items("daemonsets")
    name = handlers[0]["metadata"]["name"]
    system("rollout", "restart", f"daemonset/{name}")
    system("rollout", "status", f"daemonset/{name}", "--timeout=120s")
    assert_guest_unaffected(long_running_vm, before)
    assert_new_vm_starts_and_stops(space)


def test_component_restart_during_starts_and_stops_completes_all(space: E2eNamespace) -> None:
    stopping = space.apply_vm(idle("stopping")).until_status("Running")
    starting = [space.apply_vm(idle(f"starting-{number}")) for number in range(3)]
    stopping.run("Halted")
    system = space.kubectl.in_namespace(SYSTEM)
    for selector in (CONTROLLER, HANDLER):
        system("delete", "pod", f"--selector={selector}", "--wait=false")
    starting.append(space.apply_vm(idle("starting-late")))
    for machine in starting:
        machine.until_status("Running")
        assert len(machine.pods()) == 1, f"{machine.name} was started more than once\n{machine.diagnostics()}"
    stopping.until_stopped()
    for machine in (stopping, *starting):
        machine.discard()


# ---- the node's own daemons


@pytest.mark.parametrize("daemon", ["kubelet", "containerd"])
def test_killed_node_daemon_keeps_guest_running_and_node_accepts_vms(
    space: E2eNamespace, long_running_vm: VmUnderTest, daemon: str
) -> None:
    """Guests continue to run, and the node accepts new ones: devices are registered again."""
    before, where = long_running_vm.answer(), long_running_vm.node()

    def pid() -> str:
        return project("cluster", "exec", where, "--", "sh", "-c", f"pidof -s {daemon} || true").strip()

    old = pid()
    project("cluster", "exec", where, "--", "kill", "-KILL", old)
    wait_for(lambda: pid() not in ("", old), f"{daemon} runs again on {where}", seconds=30)
    wait_for(lambda: ready(space.kubectl, where), f"{where} is Ready", seconds=60)
    assert_guest_unaffected(long_running_vm, before)
    probe = space.apply_vm(idle(f"after-{daemon}", nodeSelector={"kubernetes.io/hostname": where}))
    assert probe.until_status("Running").node() == where
    probe.delete()


def test_restarted_kubelet_with_stale_kvm_device_gives_vm_no_kvm(space: E2eNamespace) -> None:
    """A restarted kubelet reports unusable devices as allocatable for some seconds; a pod with one never starts."""
    nodes = {node["metadata"]["name"]: node["metadata"]["labels"] for node in space.kubectl.items("nodes")}
    assert {labels["hyperlet/kvm"] for labels in nodes.values()} == {"false"}

    def offered() -> int:
        told = (node["status"]["allocatable"] for node in space.kubectl.items("nodes"))
        return sum(amounts.get("devices.kubevirt.io/kvm", "0") != "0" for amounts in told)

    for node in nodes:
        kill_daemon(node, "kubelet")
    deadline = time.monotonic() + 20
    while not (premise := offered() > 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    newcomer = space.apply_vm(idle("in-between"))
    pod = wait_for(newcomer.pods, "its pod is there", explain=newcomer.diagnostics)[0]
    assert "devices.kubevirt.io/kvm" not in pod["spec"]["containers"][0]["resources"]["limits"]
    newcomer.until_status("Running").discard()
    wait_for(lambda: all(ready(space.kubectl, node) for node in nodes), "the nodes are Ready", seconds=60)
    if not premise:
        pytest.skip("the VM got no KVM device, but no kubelet reported any after its start")


# ---- the API server


def test_guest_continues_running_during_api_server_outage(space: E2eNamespace, long_running_vm: VmUnderTest) -> None:
    """A guest continues to run; one that ends during the outage is restarted afterwards."""
    leaver = space.apply_vm(booting("leaver")).until_status("Running")
    before, first = long_running_vm.answer(), leaver.answer()
    guest, leaving = long_running_vm.guest(), leaver.guest()
    project("cluster", "apiserver", "off")
    try:
        leaving.power_off()
        for _ in range(6):
            time.sleep(10)
            assert guest.report()["bootId"] == before["bootId"]
    finally:
        project("cluster", "apiserver", "on")
    assert_guest_unaffected(long_running_vm, before)
    assert leaver.answer(other_than=first["bootId"])["bootId"] != first["bootId"]
    leaver.until_status("Running")
    leaver.discard()
    assert_new_vm_starts_and_stops(space)


# ---- nodes


def ready(kubectl: Kubectl, node: str) -> bool:
    return bool(conditions(kubectl.get("node", node))["Ready"]["status"] == "True")


def prefer_node(node: str) -> Json:
    """Preferred node affinity."""
    rule = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": {"matchExpressions": [rule]}}]
    }


def test_vm_on_unreachable_node_starts_on_other_node_only_after_out_of_service_taint(space: E2eNamespace) -> None:
    """Whether an unreachable node still runs the guest is unknown: the VM is Unknown, and is not started elsewhere.

    A force-deleted pod is no evidence. The out-of-service taint by an administrator is.
    """
    taint = "node.kubernetes.io/out-of-service"
    kubectl = space.kubectl
    unlucky = space.apply_vm(booting("unlucky", nodeSelector={"kubernetes.io/hostname": "node2"}))
    free = space.apply_vm(idle("free")).until_status("Running")
    mover = space.apply_vm(booting("mover", affinity={"nodeAffinity": prefer_node("node2")}))
    unlucky.until_status("Running")
    assert mover.until_status("Running").node() == "node2"
    first, pod = unlucky.answer(), unlucky.pod()
    moved = mover.answer()
    project("cluster", "off", "node2")
    try:
        wait_for(lambda: not ready(kubectl, "node2"), "the node is NotReady", seconds=90)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert [each["metadata"]["uid"] for each in unlucky.pods()] == [pod["metadata"]["uid"]], (
                unlucky.diagnostics()
            )
            time.sleep(1)
        for machine in (unlucky, mover):
            machine.until_status("Unknown", seconds=120)
            told = conditions(machine.vmi())["Ready"]
            assert (told["status"], told["reason"]) == ("False", "NodeNotReady") and "node2" in told["message"]
        assert unlucky.phase() == "Running" and len(unlucky.pods()) == 1, unlucky.diagnostics()
        kubectl("delete", "pod", mover.pod()["metadata"]["name"], "--force", "--grace-period=0")
        assert_stays_true(lambda: not mover.pods(), "no other pod is made", seconds=10)
        kubectl("taint", "node", "node2", f"{taint}=nodeshutdown:NoExecute")
        assert mover.answer(other_than=moved["bootId"], seconds=120)["bootId"] != moved["bootId"]
        assert mover.until_status("Running").node() == "node1"
    finally:
        project("cluster", "on", "node2")
        kubectl("taint", "node", "node2", f"{taint}-", check=False)
    wait_for(lambda: ready(kubectl, "node2"), "the node is back", seconds=60)
    assert unlucky.answer(other_than=first["bootId"], seconds=180)["bootId"] != first["bootId"]
    unlucky.until_status("Running")
    unlucky.discard()
    assert mover.until_status("Running").node() == "node1" and len(mover.active_pods()) == 1, mover.diagnostics()
    mover.discard()
    free.until_status("Running", seconds=120).discard()


def test_guest_continues_running_while_node_network_is_disconnected(space: E2eNamespace) -> None:
    """The node is unreachable for a while and its VM Unknown; the guest runs all the time."""
    kubectl = space.kubectl
    cut_off = space.apply_vm(booting("cut-off", nodeSelector={"kubernetes.io/hostname": "node2"})).until_status(
        "Running"
    )
    before = cut_off.answer()
    project("cluster", "cut", "node2")
    try:
        wait_for(lambda: not ready(kubectl, "node2"), "the node is NotReady", seconds=90)
        cut_off.until_status("Unknown", seconds=120)
    finally:
        project("cluster", "mend", "node2")
    wait_for(lambda: ready(kubectl, "node2"), "the node is back", seconds=60)
    assert_guest_unaffected(cut_off, before)
    cut_off.discard()


def test_drain_powers_off_guest_and_vm_starts_on_other_node(space: E2eNamespace) -> None:
    kubectl = space.kubectl
    nomad = space.apply_vm(booting("nomad")).until_status("Running")
    first, old = nomad.answer(), nomad.node()
    selector = f"--pod-selector=vm.kubevirt.io/name={nomad.name}"
    try:
        with nomad.follow_log() as said:
            kubectl(
                "drain", old, "--ignore-daemonsets", "--delete-emptydir-data", "--force", selector, "--timeout=120s"
            )
            assert "guest: powered off" in said()
        second = nomad.answer(other_than=first["bootId"])
        assert second["bootId"] != first["bootId"]
        assert nomad.until_status("Running").node() not in ("", old)
    finally:
        kubectl("uncordon", old)
    nomad.discard()


# ---- at random


def kill_in(pod: Json, chosen: Callable[[Process], bool]) -> None:
    for process in processes(pod):
        if chosen(process):
            process.kill()


def kill_daemon(node: str, name: str) -> None:
    project("cluster", "exec", node, "--", "sh", "-c", f"kill -KILL $(pidof {name})")


def kill_functions(kubectl: Kubectl, guests: list[VmUnderTest]) -> dict[str, Callable[[], None]]:
    """All processes that are killed: description → function that kills it."""
    found: dict[str, Callable[[], None]] = {}
    for guest in guests:
        found[f"gRPC server of {guest.name}"] = partial(kill_in, guest.pod(), lambda process: process.is_server)
        found[f"libvirt of {guest.name}"] = partial(kill_in, guest.pod(), lambda process: process.is_libvirt)
    for pod in kubectl.in_namespace(SYSTEM).items("pods"):
        found[pod["metadata"]["name"]] = partial(kill_in, pod, lambda process: process.command.startswith("python3\0"))
    for node, name in itertools.product(("node1", "node2"), ("kubelet", "containerd")):
        found[f"{name} of {node}"] = partial(kill_daemon, node, name)
    return found


def all_ready(kubectl: Kubectl) -> bool:
    """Whether all pods of hyperlet are Ready."""
    return all(conditions(pod)["Ready"]["status"] == "True" for pod in kubectl.in_namespace(SYSTEM).items("pods"))


def test_kills_in_random_order_keep_guests_running(space: E2eNamespace, long_running_vm: VmUnderTest) -> None:
    """Each process is killed once, in random order with random pauses, while one VM starts and another stops."""
    neighbour = space.apply_vm(booting("neighbour", nodeSelector={"kubernetes.io/hostname": "node2"}))
    leaver = space.apply_vm(idle("called-off")).until_status("Running")
    neighbour.until_status("Running")
    before = {machine.name: (machine, machine.answer()) for machine in (long_running_vm, neighbour)}
    wait_for(lambda: all_ready(space.kubectl), "all pods are Ready before the kills", seconds=120)
    seed = secrets.randbelow(1 << 32)
    dice = random.Random(seed)
    chosen = list(kill_functions(space.kubectl, [long_running_vm, neighbour]).items())
    dice.shuffle(chosen)
    print(f"seed {seed}: {', '.join(name for name, _ in chosen)}")
    for number, (_, kill) in enumerate(chosen):
        if number == len(chosen) // 3:
            newcomer = wait_for(lambda: space.apply_vm(idle("called-in")), "a new machine is taken")
        if number == len(chosen) // 2:
            leaver.run("Halted")
        kill()
        time.sleep(dice.uniform(0, 3))
    for machine, told in before.values():
        assert_guest_unaffected(machine, told)
    newcomer.until_status("Running")
    assert len(newcomer.pods()) == 1, newcomer.diagnostics()
    leaver.until_stopped()
    # The kubelet restarts a container with increasing back-off.
    wait_for(lambda: all_ready(space.kubectl), "all pods are Ready again", seconds=180)
    for machine in (neighbour, newcomer, leaver):
        machine.discard()


# ---- final checks


def test_guest_after_all_faults_has_same_boot_id_and_stops_gracefully(
    long_running_vm: VmUnderTest, initial_report: Json
) -> None:
    assert_guest_unaffected(long_running_vm, initial_report)
    with long_running_vm.follow_log() as said:
        long_running_vm.run("Halted")
        long_running_vm.until_stopped()
        assert "guest: powered off" in said()


def test_no_container_was_oom_killed(kubectl: Kubectl) -> None:
    for pod in kubectl.items("pods", "--all-namespaces"):
        for container in container_statuses(pod):
            for state in (container.get("state", {}), container.get("lastState", {})):
                assert state.get("terminated", {}).get("reason") != "OOMKilled", pod["metadata"]["name"]
