"""Everything dies once, except the guests."""

from __future__ import annotations

import itertools
import random
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.e2e.manifests import booting, idle
from tests.e2e.processes import Process, processes, replaced, the
from tests.e2e.support import (
    SYSTEM,
    Json,
    Kubectl,
    Machine,
    Space,
    conditions,
    container_statuses,
    project,
    stays,
)
from tests.waiting import wait_for

pytestmark = pytest.mark.alone

HANDLER = "kubevirt.io=virt-handler"
CONTROLLER = "kubevirt.io=virt-controller"


@pytest.fixture(scope="module")
def survivor(space: Space) -> Iterator[Machine]:
    """The machine that is to live through all of it, on the node that keeps its power."""
    machine = space.machine(booting("survivor", nodeSelector={"kubernetes.io/hostname": "node1"}))
    machine.until_status("Running")
    machine.answer()
    yield machine
    machine.discard()


@pytest.fixture(scope="module")
def first_words(survivor: Machine) -> Json:
    """What its guest told before anything happened."""
    return survivor.answer()


def system_pod(kubectl: Kubectl, selector: str, node: str = "") -> Json:
    """The running pod of a component (on a node)."""
    found = [
        pod
        for pod in kubectl.within(SYSTEM).items("pods", f"--selector={selector}")
        if pod["status"].get("phase") == "Running" and (not node or pod["spec"]["nodeName"] == node)
    ]
    assert found, f"no pod {selector} runs on {node or 'any node'}"
    return found[0]


def leader(kubectl: Kubectl) -> Json:
    """The controller that acts, by its Lease."""
    system = kubectl.within(SYSTEM)
    holders = [lease["spec"].get("holderIdentity") or "" for lease in system.items("leases")]
    pods = system.items("pods", f"--selector={CONTROLLER}")
    return next(pod for pod in pods if any(holder.startswith(pod["metadata"]["name"]) for holder in holders))


def restarts(pod: Json) -> int:
    return sum(container["restartCount"] for container in container_statuses(pod))


def unharmed(machine: Machine, before: Json) -> None:
    """The guest lives on: the same boot, the counter grows, and the status says so."""
    boot, counter = before["bootId"], before["counter"]
    wait_for(lambda: machine.guest().report()["counter"] > counter, "the guest's counter grows", explain=machine.story)
    assert machine.guest().report()["bootId"] == boot, f"the guest was started anew\n{machine.story()}"
    wait_for(
        lambda: machine.status() == "Running" and conditions(machine.vmi())["Ready"]["status"] == "True",
        f"{machine.name} is Running and Ready",
        explain=machine.story,
    )


def still_obeys(space: Space) -> None:
    """A new machine can be started and stopped: whoever was killed is at work again."""
    name = f"probe-{int(time.monotonic() * 1000) % 10**8}"
    probe = space.machine(idle(name)).until_status("Running")
    probe.delete()


# ---- inside the pod


@pytest.mark.parametrize("which", ["gRPC server", "libvirt"])
def test_killing_a_helper_in_the_pod_harms_nothing(survivor: Machine, first_words: Json, which: str) -> None:
    chosen: Callable[[Process], bool] = {"gRPC server": lambda p: p.is_server, "libvirt": lambda p: p.is_libvirt}[which]
    pod = survivor.pod()
    qemu = the(pod, lambda process: process.is_qemu)
    victim = the(pod, chosen)
    victim.kill()
    replaced(pod, victim, chosen)
    assert qemu.lives()
    unharmed(survivor, first_words)


@pytest.mark.parametrize("which", ["gRPC server", "libvirt"])
def test_after_a_helper_was_killed_a_stop_is_still_graceful(space: Space, which: str) -> None:
    chosen: Callable[[Process], bool] = {"gRPC server": lambda p: p.is_server, "libvirt": lambda p: p.is_libvirt}[which]
    machine = space.machine(booting("obedient-" + which.split()[-1])).until_status("Running")
    machine.answer()
    victim = the(machine.pod(), chosen)
    with machine.followed() as said:
        victim.kill()
        machine.run("Halted")  # at once: nobody has come back yet
        machine.until_stopped()
        assert "guest: powered off" in said()
    machine.discard()


def test_killing_qemu_fails_the_instance_and_always_brings_it_back(space: Space) -> None:
    phoenix = space.machine(booting("phoenix")).until_status("Running")
    first = phoenix.answer()
    old = phoenix.uid()
    the(phoenix.pod(), lambda process: process.is_qemu).kill()
    phoenix.until_told("Crashed")
    assert phoenix.answer(other_than=first["bootId"])["bootId"] != first["bootId"]
    phoenix.until_status("Running")
    assert phoenix.uid() not in ("", old)
    phoenix.discard()


def test_killing_the_supervisor_ends_the_pod_and_always_brings_it_back(space: Space) -> None:
    orphan = space.machine(idle("orphan")).until_status("Running")
    old = orphan.uid()
    the(orphan.pod(), lambda process: process.is_supervisor).kill()
    orphan.until_replaced(old)
    orphan.discard()


# ---- controller and handler


@pytest.mark.parametrize("component", ["handler", "controller"])
def test_killing_a_component_harms_nothing(space: Space, survivor: Machine, component: str) -> None:
    kubectl = space.kubectl
    pod = leader(kubectl) if component == "controller" else system_pod(kubectl, HANDLER, survivor.node())
    before = survivor.answer()
    name, count = pod["metadata"]["name"], restarts(pod)
    for process in processes(pod):
        if process.command.split("\0")[-2:-1] == [component]:
            process.kill()
            break
    else:
        raise AssertionError(f"no process of the {component}: {[p.command for p in processes(pod)]}")
    wait_for(
        lambda: (
            restarts(kubectl.within(SYSTEM).get("pod", name) or {}) > count
            and conditions(kubectl.within(SYSTEM).get("pod", name))["Ready"]["status"] == "True"
        ),
        f"the {component} is started again and Ready",
        seconds=90,
    )
    unharmed(survivor, before)
    still_obeys(space)


def test_a_guest_that_ends_while_its_handler_is_away_is_noticed(space: Space) -> None:
    """The handler is killed at the very moment QEMU is: the state is right all the same."""
    lonely = space.machine(idle("lonely", run="Once")).until_status("Running")
    handler = system_pod(space.kubectl, HANDLER, lonely.node())
    qemu = the(lonely.pod(), lambda process: process.is_qemu)
    the(handler, lambda process: process.command.endswith("\0handler\0")).kill()
    qemu.kill()
    wait_for(lambda: lonely.phase() in ("Failed", ""), "the instance has Failed", explain=lonely.story)
    lonely.discard()


def test_a_rolled_out_handler_takes_its_machines_back(space: Space, survivor: Machine) -> None:
    system = space.kubectl.within(SYSTEM)
    before = survivor.answer()
    handlers = system.items("daemonsets", f"--selector={HANDLER}") or system.items("daemonsets")
    name = handlers[0]["metadata"]["name"]
    system("rollout", "restart", f"daemonset/{name}")
    system("rollout", "status", f"daemonset/{name}", "--timeout=120s")
    unharmed(survivor, before)
    still_obeys(space)


def test_a_restart_of_everything_in_the_middle_of_starts_and_stops_loses_nothing(space: Space) -> None:
    stopping = space.machine(idle("stopping")).until_status("Running")
    starting = [space.machine(idle(f"starting-{number}")) for number in range(3)]
    stopping.run("Halted")
    system = space.kubectl.within(SYSTEM)
    for selector in (CONTROLLER, HANDLER):
        system("delete", "pod", f"--selector={selector}", "--wait=false")
    starting.append(space.machine(idle("starting-late")))
    for machine in starting:
        machine.until_status("Running")
        assert len(machine.pods()) == 1, f"{machine.name} was started more than once\n{machine.story()}"
    stopping.until_stopped()
    for machine in (stopping, *starting):
        machine.discard()


# ---- the node's own daemons


@pytest.mark.parametrize("daemon", ["kubelet", "containerd"])
def test_killing_a_daemon_of_the_node_harms_nothing(space: Space, survivor: Machine, daemon: str) -> None:
    """Guests run on, and the node takes new ones: kubelet has forgotten which devices there are, and is told again."""
    before, where = survivor.answer(), survivor.node()

    def pid() -> str:
        return project("cluster", "exec", where, "--", "sh", "-c", f"pidof -s {daemon} || true").strip()

    old = pid()
    project("cluster", "exec", where, "--", "kill", "-KILL", old)
    wait_for(lambda: pid() not in ("", old), f"{daemon} runs again on {where}", seconds=30)
    wait_for(lambda: ready(space.kubectl, where), f"{where} is Ready", seconds=60)
    unharmed(survivor, before)
    probe = space.machine(idle(f"after-{daemon}", nodeSelector={"kubernetes.io/hostname": where}))
    assert probe.until_status("Running").node() == where
    probe.delete()


def test_kubelets_that_start_again_make_nobody_believe_in_kvm(space: Space) -> None:
    """For some seconds they report devices that do not work as allocatable, and a pod made then would wait for ever."""
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
    newcomer = space.machine(idle("in-between"))
    pod = wait_for(newcomer.pods, "its pod is there", explain=newcomer.story)[0]
    assert "devices.kubevirt.io/kvm" not in pod["spec"]["containers"][0]["resources"]["limits"]
    newcomer.until_status("Running").discard()
    wait_for(lambda: all(ready(space.kubectl, node) for node in nodes), "the nodes are Ready", seconds=60)
    if not premise:
        pytest.skip("the VM got no KVM device, but no kubelet reported any after its start")


# ---- the API server


def test_a_minute_without_api_server_harms_nothing(space: Space, survivor: Machine) -> None:
    """A guest goes on; one that ends meanwhile is dealt with afterwards."""
    leaver = space.machine(booting("leaver")).until_status("Running")
    before, first = survivor.answer(), leaver.answer()
    guest, leaving = survivor.guest(), leaver.guest()
    project("cluster", "apiserver", "off")
    try:
        leaving.power_off()
        for _ in range(6):
            time.sleep(10)
            assert guest.report()["bootId"] == before["bootId"]
    finally:
        project("cluster", "apiserver", "on")
    unharmed(survivor, before)
    assert leaver.answer(other_than=first["bootId"])["bootId"] != first["bootId"]
    leaver.until_status("Running")
    leaver.discard()
    still_obeys(space)


# ---- nodes


def ready(kubectl: Kubectl, node: str) -> bool:
    return bool(conditions(kubectl.get("node", node))["Ready"]["status"] == "True")


def rather_on(node: str) -> Json:
    """Affinity that gives way."""
    rule = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": {"matchExpressions": [rule]}}]
    }


def test_a_node_without_power_never_makes_a_machine_run_twice(space: Space) -> None:
    """Nobody can know whether a silent node still runs the guest: that is told, and nobody starts it elsewhere.

    A pod that is removed by force proves nothing. An administrator who knows that the node is off says so by its taint.
    """
    taint = "node.kubernetes.io/out-of-service"
    kubectl = space.kubectl
    unlucky = space.machine(booting("unlucky", nodeSelector={"kubernetes.io/hostname": "node2"}))
    free = space.machine(idle("free")).until_status("Running")
    mover = space.machine(booting("mover", affinity={"nodeAffinity": rather_on("node2")}))
    unlucky.until_status("Running")
    assert mover.until_status("Running").node() == "node2"
    first, pod = unlucky.answer(), unlucky.pod()
    moved = mover.answer()
    project("cluster", "off", "node2")
    try:
        wait_for(lambda: not ready(kubectl, "node2"), "the node is noticed to be gone", seconds=90)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert [each["metadata"]["uid"] for each in unlucky.pods()] == [pod["metadata"]["uid"]], unlucky.story()
            time.sleep(1)
        for machine in (unlucky, mover):
            machine.until_status("Unknown", seconds=120)
            told = conditions(machine.vmi())["Ready"]
            assert (told["status"], told["reason"]) == ("False", "NodeNotReady") and "node2" in told["message"]
        assert unlucky.phase() == "Running" and len(unlucky.pods()) == 1, unlucky.story()
        kubectl("delete", "pod", mover.pod()["metadata"]["name"], "--force", "--grace-period=0")
        stays(lambda: not mover.pods(), "no other pod is made", seconds=10)
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
    assert mover.until_status("Running").node() == "node1" and len(mover.living()) == 1, mover.story()
    mover.discard()
    free.until_status("Running", seconds=120).discard()


def test_a_pulled_cable_harms_nothing(space: Space) -> None:
    """The node cannot be reached for a while, and nobody knows of its guest, which has run on all the time."""
    kubectl = space.kubectl
    cut_off = space.machine(booting("cut-off", nodeSelector={"kubernetes.io/hostname": "node2"})).until_status(
        "Running"
    )
    before = cut_off.answer()
    project("cluster", "cut", "node2")
    try:
        wait_for(lambda: not ready(kubectl, "node2"), "the node is noticed to be gone", seconds=90)
        cut_off.until_status("Unknown", seconds=120)
    finally:
        project("cluster", "mend", "node2")
    wait_for(lambda: ready(kubectl, "node2"), "the node is back", seconds=60)
    unharmed(cut_off, before)
    cut_off.discard()


def test_a_drain_shuts_guests_down_gracefully_and_they_start_elsewhere(space: Space) -> None:
    kubectl = space.kubectl
    nomad = space.machine(booting("nomad")).until_status("Running")
    first, old = nomad.answer(), nomad.node()
    selector = f"--pod-selector=vm.kubevirt.io/name={nomad.name}"
    try:
        with nomad.followed() as said:
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


def victims(kubectl: Kubectl, guests: list[Machine]) -> dict[str, Callable[[], None]]:
    """Everything whose death must harm nothing: who, and how to kill them."""
    found: dict[str, Callable[[], None]] = {}
    for guest in guests:
        found[f"gRPC server of {guest.name}"] = partial(kill_in, guest.pod(), lambda process: process.is_server)
        found[f"libvirt of {guest.name}"] = partial(kill_in, guest.pod(), lambda process: process.is_libvirt)
    for pod in kubectl.within(SYSTEM).items("pods"):
        found[pod["metadata"]["name"]] = partial(kill_in, pod, lambda process: process.command.startswith("python3\0"))
    for node, name in itertools.product(("node1", "node2"), ("kubelet", "containerd")):
        found[f"{name} of {node}"] = partial(kill_daemon, node, name)
    return found


def all_ready(kubectl: Kubectl) -> bool:
    """Whether all of hyperlet's own pods are."""
    return all(conditions(pod)["Ready"]["status"] == "True" for pod in kubectl.within(SYSTEM).items("pods"))


def test_killed_in_any_order_nothing_is_lost(space: Space, survivor: Machine) -> None:
    """Everything is killed once, in an order and with pauses of chance, while one machine starts and another stops."""
    neighbour = space.machine(booting("neighbour", nodeSelector={"kubernetes.io/hostname": "node2"}))
    leaver = space.machine(idle("called-off")).until_status("Running")
    neighbour.until_status("Running")
    before = {machine.name: (machine, machine.answer()) for machine in (survivor, neighbour)}
    wait_for(lambda: all_ready(space.kubectl), "everything is there to be killed", seconds=120)
    seed = secrets.randbelow(1 << 32)
    dice = random.Random(seed)
    chosen = list(victims(space.kubectl, [survivor, neighbour]).items())
    dice.shuffle(chosen)
    print(f"seed {seed}: {', '.join(name for name, _ in chosen)}")
    for number, (_, kill) in enumerate(chosen):
        if number == len(chosen) // 3:
            newcomer = wait_for(lambda: space.machine(idle("called-in")), "a new machine is taken")
        if number == len(chosen) // 2:
            leaver.run("Halted")
        kill()
        time.sleep(dice.uniform(0, 3))
    for machine, told in before.values():
        unharmed(machine, told)
    newcomer.until_status("Running")
    assert len(newcomer.pods()) == 1, newcomer.story()
    leaver.until_stopped()
    # The kubelet lets a container that has ended several times wait longer each time.
    wait_for(lambda: all_ready(space.kubectl), "everything is back", seconds=180)
    for machine in (neighbour, newcomer, leaver):
        machine.discard()


# ---- and at the end


def test_the_survivor_has_survived(survivor: Machine, first_words: Json) -> None:
    unharmed(survivor, first_words)
    with survivor.followed() as said:
        survivor.run("Halted")
        survivor.until_stopped()
        assert "guest: powered off" in said()


def test_nothing_was_killed_for_memory(kubectl: Kubectl) -> None:
    for pod in kubectl.items("pods", "--all-namespaces"):
        for container in container_statuses(pod):
            for state in (container.get("state", {}), container.get("lastState", {})):
                assert state.get("terminated", {}).get("reason") != "OOMKilled", pod["metadata"]["name"]
