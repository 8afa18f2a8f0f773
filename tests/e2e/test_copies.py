"""Never two copies of a virtual machine, whatever the API says: counted on the machine that both nodes run on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.manifests import halting, idle, instance
from tests.e2e.processes import Process, processes
from tests.e2e.support import (
    EXISTING,
    SYSTEM,
    Json,
    Kubectl,
    KubectlError,
    Machine,
    Space,
    conditions,
    project,
    stays,
)
from tests.waiting import wait_for

pytestmark = pytest.mark.alone

HANDLER = "kubevirt.io=virt-handler"
GRACE = 20
"""Seconds that a guest which ignores its power button is left running after it was asked to end."""


def qemus(space: Space, name: str) -> list[int]:
    """The QEMU processes of a virtual machine on this machine, whichever node they are on."""
    if EXISTING:
        pytest.skip("needs nodes of its own")
    mark, found = f"guest={space.name}_{name},".encode(), []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "comm").read_bytes().startswith(b"qemu-system"):
                command = (entry / "cmdline").read_bytes()
                if mark in command or command.endswith(mark[:-1] + b"\0"):
                    found.append(int(entry.name))
    return found


@contextlib.contextmanager
def counted(space: Space, name: str) -> Iterator[None]:
    """Asserts at the end of the block that at no moment of it two QEMUs of the virtual machine ran."""
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            most[0] = max(most[0], len(qemus(space, name)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    assert most[0] <= 1, f"{most[0]} QEMUs of {name} ran at the same time"
    assert most[0] == 1, "the watcher saw none: it proves nothing"


@pytest.fixture
def stubborn(space: Space, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A running machine whose guest ignores its power button."""
    name = "x" + str(abs(hash(request.node.name)) % 10**8)
    machine = space.machine(idle(name, grace=GRACE)).until_status("Running")
    wait_for(lambda: len(qemus(space, name)) == 1, "its QEMU is seen", explain=machine.story)
    yield machine
    # A minute of grace for each test would be an hour: the next one counts for itself.
    machine.patch({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 0}}}})
    machine.discard()


def anew(machine: Machine, old: str, seconds: float = 120) -> None:
    machine.until_replaced(old, seconds=seconds)
    assert len(qemus(machine.space, machine.name)) == 1


@contextlib.contextmanager
def stopped_kubelet(node: str) -> Iterator[None]:
    """The node's kubelet does not answer; its handler and its guests run on."""
    project("cluster", "exec", node, "--", "sh", "-c", "kill -STOP $(pidof kubelet)")
    try:
        yield
    finally:
        project("cluster", "exec", node, "--", "sh", "-c", "kill -CONT $(pidof kubelet)")


def handlers(kubectl: Kubectl, node: str) -> list[Process]:
    """The processes of a node's handler."""
    found = [
        pod
        for pod in kubectl.within(SYSTEM).items("pods", f"--selector={HANDLER}")
        if pod["spec"]["nodeName"] == node and pod["status"].get("phase") == "Running"
    ]
    return [each for pod in found for each in processes(pod) if each.command.endswith("\0handler\0")]


@contextlib.contextmanager
def stopped_handler(kubectl: Kubectl, node: str) -> Iterator[None]:
    victims = handlers(kubectl, node)
    assert victims, f"no handler runs on {node}"
    for victim in victims:
        os.kill(victim.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGCONT)


@contextlib.contextmanager
def without_gateway(kubectl: Kubectl) -> Iterator[None]:
    """The gateway's webhooks are open meanwhile: only the API server's own policies stand."""
    system = kubectl.within(SYSTEM)
    replicas = (system.get("deployment", "hyperlet-gateway") or {})["spec"]["replicas"]
    system("scale", "deployment/hyperlet-gateway", "--replicas=0")
    wait_for(lambda: not system.items("pods", "--selector=kubevirt.io=virt-api"), "the gateway is away")
    try:
        yield
    finally:
        system("scale", "deployment/hyperlet-gateway", f"--replicas={replicas}")
        system("rollout", "status", "deployment/hyperlet-gateway", "--timeout=120s")


def told(machine: Machine) -> str:
    """What the instance says it waits for; empty while it does not."""
    known = conditions(machine.vmi())
    for kind in ("Ready", "Synchronized"):
        if (condition := known.get(kind, {})).get("reason") == "LauncherNotEnded":
            return str(condition["message"])
    return ""


# ---- the pod's object says less than what runs


def test_a_pod_deleted_by_force_while_its_kubelet_is_silent_is_not_replaced(space: Space, stubborn: Machine) -> None:
    """Its handler sees that QEMU runs on: the VM waits, says for what, and starts when it has ended."""
    old, node, pod = stubborn.uid(), stubborn.node(), stubborn.pod()["metadata"]["name"]
    with counted(space, stubborn.name):
        space.kubectl("cordon", node)
        try:
            with stopped_kubelet(node):
                space.kubectl("delete", "pod", pod, "--force", "--grace-period=0", "--wait=false")
                words = wait_for(lambda: told(stubborn), "what it waits for is told", explain=stubborn.story)
                assert node in words and "hyperctl fence" in words and "out-of-service" in words
                assert stubborn.status() == "Unknown"
                stays(lambda: stubborn.uid() == old and not stubborn.pods(), "it is not started elsewhere", seconds=15)
                assert len(qemus(space, stubborn.name)) == 1
            anew(stubborn, old)
            assert stubborn.node() != node
        finally:
            space.kubectl("uncordon", node)


def test_a_handler_that_finds_nothing_left_is_evidence_enough(space: Space, stubborn: Machine) -> None:
    """The kubelet stays silent: the node's handler alone vouches for the end."""
    old, node, pod = stubborn.uid(), stubborn.node(), stubborn.pod()
    with stopped_kubelet(node), counted(space, stubborn.name):
        space.kubectl("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0", "--wait=false")
        wait_for(lambda: told(stubborn), "what it waits for is told", explain=stubborn.story)
        for process in processes(pod):
            with contextlib.suppress(AssertionError, ProcessLookupError):
                process.kill()
        for victim in pod_processes(pod["metadata"]["uid"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        wait_for(lambda: stubborn.uid() != old, "its end is believed", seconds=30, explain=stubborn.story)
    anew(stubborn, old)


def pod_processes(uid: str) -> list[int]:
    """Every process of a pod, its sandbox's too, which is in no container that the pod's status names."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes():
                groups = (entry / "cgroup").read_text()
                if f"pod{uid}" in groups or f"pod{uid.replace('-', '_')}" in groups:
                    found.append(int(entry.name))
    return found


def end_pod_processes(uid: str) -> None:
    """Kill a pod's processes until none is left: one may be born between the look and the kill."""

    def none_left() -> bool:
        left = pod_processes(uid)
        for victim in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        return not left

    wait_for(none_left, "no process of the pod is left", seconds=20)


@pytest.mark.parametrize("reason", ["Preempting", "Evicted", "Terminated", "NodeShutdown"])
def test_a_pod_called_failed_before_its_containers_have_ended_is_not_replaced(
    space: Space, stubborn: Machine, reason: str
) -> None:
    """As a kubelet does that preempts, evicts or shuts down: without a word about the containers."""
    old, node, pod = stubborn.uid(), stubborn.node(), stubborn.pod()["metadata"]["name"]
    with counted(space, stubborn.name):
        with stopped_kubelet(node):
            early = {
                "phase": "Failed",
                "reason": reason,
                "message": "in order to admit another",
                "containerStatuses": None,
            }
            space.kubectl(
                "patch", "pod", pod, "--subresource=status", "--type=merge", "-p", json.dumps({"status": early})
            )
            words = wait_for(lambda: told(stubborn), "what it waits for is told", explain=stubborn.story)
            assert reason in words and node in words
            assert conditions(stubborn.vmi())["Ready"]["status"] == "False"
            stays(lambda: stubborn.uid() == old and len(stubborn.pods()) == 1, "no second pod is made", seconds=20)
        space.kubectl("delete", "pod", pod, "--wait=false", "--ignore-not-found")
        anew(stubborn, old)


def test_a_failed_pod_with_a_stale_running_container_is_told_and_has_a_way_out(space: Space, stubborn: Machine) -> None:
    old, node, pod = stubborn.uid(), stubborn.node(), stubborn.pod()
    with stopped_kubelet(node):
        end_pod_processes(pod["metadata"]["uid"])
        name = pod["metadata"]["name"]
        space.kubectl(
            "patch", "pod", name, "--subresource=status", "--type=merge", "-p", '{"status": {"phase": "Failed"}}'
        )
        assert stubborn.pods()[0]["status"]["containerStatuses"][0]["state"].get("running")
        wait_for(
            lambda: stubborn.uid() != old, "the handler's evidence is believed", seconds=40, explain=stubborn.story
        )
    anew(stubborn, old)


# ---- owners, labels and finalizers


@pytest.mark.parametrize("cascade", ["background", "foreground", "orphan"])
def test_a_deleted_instance_runs_once_whatever_becomes_of_its_pod(
    space: Space, stubborn: Machine, cascade: str
) -> None:
    old = stubborn.uid()
    with counted(space, stubborn.name):
        space.kubectl("delete", "vmi", stubborn.name, f"--cascade={cascade}", "--wait=false")
        if cascade == "orphan":
            wait_for(lambda: "is terminating" in told(stubborn), "what is awaited is told", explain=stubborn.story)
        anew(stubborn, old)


@pytest.mark.parametrize("cascade", ["background", "foreground"])
def test_a_deleted_machine_takes_its_instance_along(space: Space, stubborn: Machine, cascade: str) -> None:
    with counted(space, stubborn.name):
        space.kubectl("delete", "vm", stubborn.name, f"--cascade={cascade}", "--wait=false")
        stubborn.until_gone(seconds=90)
    assert not qemus(space, stubborn.name)
    space.machine(idle(stubborn.name)).until_status("Running")


@pytest.mark.parametrize("gateway", [True, False])
def test_an_orphaned_instance_runs_on_and_is_taken_over_by_the_next_machine(
    space: Space, stubborn: Machine, gateway: bool
) -> None:
    old, (qemu,) = stubborn.uid(), qemus(space, stubborn.name)
    manifest = idle(stubborn.name, grace=GRACE)
    with contextlib.ExitStack() as stack:
        stack.enter_context(counted(space, stubborn.name))
        if not gateway:
            stack.enter_context(without_gateway(space.kubectl))
        space.kubectl("delete", "vm", stubborn.name, "--cascade=orphan", "--timeout=60s")
        wait_for(lambda: not (stubborn.vmi() or {})["metadata"].get("ownerReferences"), "it has no owner")
        stays(lambda: stubborn.phase() == "Running" and qemus(space, stubborn.name) == [qemu], "it runs on", seconds=8)
        if not gateway:
            stack.close()
        space.apply(manifest)
        stubborn.until_status("Running")
        wait_for(
            lambda: (
                (stubborn.vmi() or {})["metadata"]["ownerReferences"][0]["uid"]
                == (stubborn.vm() or {})["metadata"]["uid"]
            ),
            "the new machine owns it",
            explain=stubborn.story,
        )
        assert stubborn.uid() == old and qemus(space, stubborn.name) == [qemu]


def test_a_pod_without_owner_and_labels_is_still_the_instances(space: Space, stubborn: Machine) -> None:
    old, pod = stubborn.uid(), stubborn.pod()["metadata"]["name"]
    with counted(space, stubborn.name):
        bare = {"metadata": {"ownerReferences": None, "labels": None}}
        space.kubectl("patch", "pod", pod, "--type=merge", "-p", json.dumps(bare))
        stays(lambda: stubborn.uid() == old and stubborn.status() == "Running", "it runs on", seconds=6)
        space.kubectl("delete", "vmi", stubborn.name, "--wait=false")
        anew(stubborn, old)
    wait_for(lambda: not space.kubectl.get("pod", pod), "the pod has gone", seconds=60)


@pytest.mark.parametrize("gateway", [True, False])
def test_an_editor_cannot_take_the_finalizer_off(space: Space, stubborn: Machine, gateway: bool) -> None:
    """Gateway or not. And where it was taken off all the same, by an administrator, it is put back."""
    user = f"system:serviceaccount:{space.name}:default"
    with contextlib.suppress(KubectlError):
        space.kubectl("create", "rolebinding", "edits", "--clusterrole=edit", f"--serviceaccount={space.name}:default")
    old = stubborn.uid()
    bare = '{"metadata": {"finalizers": null}}'
    with contextlib.ExitStack() as stack:
        stack.enter_context(counted(space, stubborn.name))
        if not gateway:
            stack.enter_context(without_gateway(space.kubectl))
        document = stubborn.vmi() or {}
        document["metadata"].pop("finalizers")
        with contextlib.suppress(KubectlError):
            space.kubectl("replace", "-f", "-", f"--as={user}", stdin=json.dumps(document))
        assert (stubborn.vmi() or {})["metadata"].get("finalizers"), "a PUT without it took it off"
        space.kubectl("delete", "vmi", stubborn.name, "--wait=false", f"--as={user}")
        with pytest.raises(KubectlError, match="finalizer"):
            space.kubectl("patch", "vmi", stubborn.name, "--type=merge", "-p", bare, f"--as={user}")
        assert (stubborn.vmi() or {})["metadata"]["uid"] == old
        anew(stubborn, old)
        space.kubectl("patch", "vmi", stubborn.name, "--type=merge", "-p", bare)
        wait_for(lambda: (stubborn.vmi() or {})["metadata"].get("finalizers"), "it is put back", seconds=20)


def test_an_instance_torn_away_by_an_administrator_is_waited_for(space: Space, stubborn: Machine) -> None:
    """Finalizer and owners gone, the instance with them: the next one of the name waits for the pod of the first."""
    old, pod = stubborn.uid(), stubborn.pod()["metadata"]["name"]
    with counted(space, stubborn.name):
        space.kubectl("patch", "pod", pod, "--type=merge", "-p", '{"metadata": {"ownerReferences": null}}')
        space.kubectl("delete", "vmi", stubborn.name, "--wait=false")
        space.kubectl("patch", "vmi", stubborn.name, "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
        words = wait_for(
            lambda: told(stubborn) if stubborn.uid() not in ("", old) else "",
            "the next instance says what it waits for",
            explain=stubborn.story,
        )
        assert pod in words and "earlier VirtualMachineInstance" in words
        anew(stubborn, old)


# ---- nodes


def test_a_kubelet_that_starts_again_ends_nothing_though_the_nodes_label_is_off(
    space: Space, stubborn: Machine
) -> None:
    """It admits its running pods anew, and ends those that require a label that is gone.

    The handler, which would put the label back, is stopped.
    """
    node, old, (qemu,) = stubborn.node(), stubborn.uid(), qemus(space, stubborn.name)
    labels = ("kubevirt.io/schedulable", "hyperlet/kvm")
    kubectl = space.kubectl
    try:
        with stopped_handler(kubectl, node):
            kubectl("label", "node", node, "--overwrite", f"{labels[0]}=false", f"{labels[1]}-")

            def kubelet() -> str:
                return project("cluster", "exec", node, "--", "sh", "-c", "pidof -s kubelet; true").strip()

            before = kubelet()
            project("cluster", "exec", node, "--", "kill", "-KILL", before)
            wait_for(lambda: kubelet() not in ("", before), "another kubelet runs", seconds=30)
            stays(
                lambda: stubborn.uid() == old and qemus(space, stubborn.name) == [qemu], "the guest runs on", seconds=20
            )
            assert stubborn.pod()["status"]["phase"] == "Running"
    finally:
        kubectl("label", "node", node, "--overwrite", f"{labels[0]}=true", f"{labels[1]}=false")
    wait_for(lambda: conditions(kubectl.get("node", node))["Ready"]["status"] == "True", f"{node} is Ready")
    stubborn.until_status("Running")


def test_a_node_without_its_handler_gets_no_new_machine(space: Space) -> None:
    """What keeps them away is no label: kubelet drops the devices of a plugin that is gone."""
    kubectl, node = space.kubectl, "node2"
    (handler,) = [
        pod for pod in kubectl.within(SYSTEM).items("pods", f"--selector={HANDLER}") if pod["spec"]["nodeName"] == node
    ]
    away: Json = {"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "node1"}}}}}
    system = kubectl.within(SYSTEM)
    name = handler["metadata"]["ownerReferences"][0]["name"]
    system("patch", "daemonset", name, "--type=merge", "-p", json.dumps(away))
    try:
        wait_for(
            lambda: (
                (kubectl.get("node", node) or {})["status"]["allocatable"].get("devices.kubevirt.io/tun", "0") == "0"
            ),
            "the node offers no taps",
            seconds=90,
        )
        assert (kubectl.get("node", node) or {})["metadata"]["labels"]["kubevirt.io/schedulable"] == "true"
        waiting = space.machine(idle("unserved", nodeSelector={"kubernetes.io/hostname": node}))
        waiting.until_status("ErrorUnschedulable")
    finally:
        system(
            "patch",
            "daemonset",
            name,
            "--type=json",
            "-p",
            '[{"op": "remove", "path": "/spec/template/spec/nodeSelector/kubernetes.io~1hostname"}]',
        )
        system("rollout", "status", f"daemonset/{name}", "--timeout=120s")
    waiting.until_status("Running").discard()


def test_the_administrators_word_for_one_machine(space: Space, stubborn: Machine) -> None:
    """Neither kubelet nor handler of the node tell anything; a person ends QEMU there, and says so."""
    old, node, pod = stubborn.uid(), stubborn.node(), stubborn.pod()
    with contextlib.ExitStack() as stack:
        stack.enter_context(counted(space, stubborn.name))
        space.kubectl("cordon", node)
        stack.callback(space.kubectl, "uncordon", node)
        stack.enter_context(stopped_kubelet(node))
        stack.enter_context(stopped_handler(space.kubectl, node))
        space.kubectl("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0", "--wait=false")
        wait_for(lambda: told(stubborn), "what it waits for is told", explain=stubborn.story)
        end_pod_processes(pod["metadata"]["uid"])
        stays(lambda: stubborn.uid() == old, "nobody knows that it has ended", seconds=6)
        project("cli", f"--kubeconfig={space.kubectl.kubeconfig}", "fence", "-n", space.name, stubborn.name, "--yes")
        anew(stubborn, old)
        assert stubborn.node() != node


def test_an_instance_of_its_own_that_is_orphaned_ends_its_pod(space: Space) -> None:
    """It has no owner; its pod loses it. A launcher without an instance is nothing: the guest is ended, once."""
    alone = space.machine(instance("lone", halting(), memory="64Mi", network=False, grace=2)).until_phase("Running")
    space.kubectl("delete", "vmi", "lone", "--cascade=orphan", "--timeout=90s")
    alone.until_gone(seconds=90)
    assert not qemus(space, "lone")
