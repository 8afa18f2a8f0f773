"""At most one copy of a VM runs, whatever the API reports: QEMU processes are counted on the host of both nodes."""

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
    E2eNamespace,
    Json,
    Kubectl,
    KubectlError,
    VmUnderTest,
    assert_stays_true,
    conditions,
    project,
)
from tests.waiting import wait_for

pytestmark = pytest.mark.alone

HANDLER = "kubevirt.io=virt-handler"
GRACE = 20
"""Grace period in seconds of a guest that ignores its power button."""


def qemu_pids(space: E2eNamespace, name: str) -> list[int]:
    """Pids of the QEMU processes of a VM on this host, on any node."""
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
def at_most_one_qemu(space: E2eNamespace, name: str) -> Iterator[None]:
    """Assert at the end of the block that never more than one QEMU process of the VM ran in it."""
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            most[0] = max(most[0], len(qemu_pids(space, name)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    assert most[0] <= 1, f"{most[0]} QEMUs of {name} ran at the same time"
    assert most[0] == 1, "the watcher saw no QEMU, so the test proves nothing"


@pytest.fixture
def vm_ignoring_acpi(space: E2eNamespace, request: pytest.FixtureRequest) -> Iterator[VmUnderTest]:
    """A running VM whose guest ignores its power button."""
    name = "x" + str(abs(hash(request.node.name)) % 10**8)
    machine = space.apply_vm(idle(name, grace=GRACE)).until_status("Running")
    wait_for(lambda: len(qemu_pids(space, name)) == 1, "its QEMU is seen", explain=machine.diagnostics)
    yield machine
    # Without grace period, so that the tests do not add up to an hour; the next one uses another VM.
    machine.patch({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 0}}}})
    machine.discard()


def assert_replaced_once(machine: VmUnderTest, old: str, seconds: float = 120) -> None:
    machine.until_replaced(old, seconds=seconds)
    assert len(qemu_pids(machine.space, machine.name)) == 1


@contextlib.contextmanager
def stopped_kubelet(node: str) -> Iterator[None]:
    """SIGSTOP the node's kubelet; its handler and its guests continue to run."""
    project("cluster", "exec", node, "--", "sh", "-c", "kill -STOP $(pidof kubelet)")
    try:
        yield
    finally:
        project("cluster", "exec", node, "--", "sh", "-c", "kill -CONT $(pidof kubelet)")


def handlers(kubectl: Kubectl, node: str) -> list[Process]:
    """The processes of a node's handler."""
    found = [
        pod
        for pod in kubectl.in_namespace(SYSTEM).items("pods", f"--selector={HANDLER}")
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
    """Scale the gateway to 0 replicas: only the API server's admission policies apply."""
    system = kubectl.in_namespace(SYSTEM)
    replicas = (system.get("deployment", "hyperlet-gateway") or {})["spec"]["replicas"]
    system("scale", "deployment/hyperlet-gateway", "--replicas=0")
    wait_for(lambda: not system.items("pods", "--selector=kubevirt.io=virt-api"), "the gateway is away")
    try:
        yield
    finally:
        system("scale", "deployment/hyperlet-gateway", f"--replicas={replicas}")
        system("rollout", "status", "deployment/hyperlet-gateway", "--timeout=120s")


def wait_message(machine: VmUnderTest) -> str:
    """Message of the LauncherNotEnded condition of the VMI; empty if there is none."""
    known = conditions(machine.vmi())
    for kind in ("Ready", "Synchronized"):
        if (condition := known.get(kind, {})).get("reason") == "LauncherNotEnded":
            return str(condition["message"])
    return ""


# ---- the pod object does not show what still runs


def test_force_deleted_pod_is_not_replaced_while_kubelet_is_stopped(
    space: E2eNamespace, vm_ignoring_acpi: VmUnderTest
) -> None:
    """The handler sees that QEMU still runs: the VM waits, reports why, and starts when QEMU has ended."""
    old, node, pod = vm_ignoring_acpi.uid(), vm_ignoring_acpi.node(), vm_ignoring_acpi.pod()["metadata"]["name"]
    with at_most_one_qemu(space, vm_ignoring_acpi.name):
        space.kubectl("cordon", node)
        try:
            with stopped_kubelet(node):
                space.kubectl("delete", "pod", pod, "--force", "--grace-period=0", "--wait=false")
                words = wait_for(
                    lambda: wait_message(vm_ignoring_acpi),
                    "the VMI reports what it waits for",
                    explain=vm_ignoring_acpi.diagnostics,
                )
                assert node in words and "hyperctl fence" in words and "out-of-service" in words
                assert vm_ignoring_acpi.status() == "Unknown"
                assert_stays_true(
                    lambda: vm_ignoring_acpi.uid() == old and not vm_ignoring_acpi.pods(),
                    "it is not started elsewhere",
                    seconds=15,
                )
                assert len(qemu_pids(space, vm_ignoring_acpi.name)) == 1
            assert_replaced_once(vm_ignoring_acpi, old)
            assert vm_ignoring_acpi.node() != node
        finally:
            space.kubectl("uncordon", node)


def test_vm_restarts_after_handler_finds_no_process_of_force_deleted_pod(
    space: E2eNamespace, vm_ignoring_acpi: VmUnderTest
) -> None:
    """The kubelet stays stopped: only the node's handler reports the end."""
    old, node, pod = vm_ignoring_acpi.uid(), vm_ignoring_acpi.node(), vm_ignoring_acpi.pod()
    with stopped_kubelet(node), at_most_one_qemu(space, vm_ignoring_acpi.name):
        space.kubectl("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0", "--wait=false")
        wait_for(
            lambda: wait_message(vm_ignoring_acpi),
            "the VMI reports what it waits for",
            explain=vm_ignoring_acpi.diagnostics,
        )
        for process in processes(pod):
            with contextlib.suppress(AssertionError, ProcessLookupError):
                process.kill()
        for victim in pod_processes(pod["metadata"]["uid"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        wait_for(
            lambda: vm_ignoring_acpi.uid() != old,
            "the VMI is replaced",
            seconds=30,
            explain=vm_ignoring_acpi.diagnostics,
        )
    assert_replaced_once(vm_ignoring_acpi, old)


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
    """Kill a pod's processes until none is left: one may start between listing and killing."""

    def none_left() -> bool:
        left = pod_processes(uid)
        for victim in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        return not left

    wait_for(none_left, "no process of the pod is left", seconds=20)


@pytest.mark.parametrize("reason", ["Preempting", "Evicted", "Terminated", "NodeShutdown"])
def test_failed_pod_with_unreported_containers_is_not_replaced(
    space: E2eNamespace, vm_ignoring_acpi: VmUnderTest, reason: str
) -> None:
    """As by a kubelet that preempts, evicts or shuts down: without container statuses."""
    old, node, pod = vm_ignoring_acpi.uid(), vm_ignoring_acpi.node(), vm_ignoring_acpi.pod()["metadata"]["name"]
    with at_most_one_qemu(space, vm_ignoring_acpi.name):
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
            words = wait_for(
                lambda: wait_message(vm_ignoring_acpi),
                "the VMI reports what it waits for",
                explain=vm_ignoring_acpi.diagnostics,
            )
            assert reason in words and node in words
            assert conditions(vm_ignoring_acpi.vmi())["Ready"]["status"] == "False"
            assert_stays_true(
                lambda: vm_ignoring_acpi.uid() == old and len(vm_ignoring_acpi.pods()) == 1,
                "no second pod is made",
                seconds=20,
            )
        space.kubectl("delete", "pod", pod, "--wait=false", "--ignore-not-found")
        assert_replaced_once(vm_ignoring_acpi, old)


def test_failed_pod_with_stale_running_container_is_replaced_after_handler_evidence(
    space: E2eNamespace, vm_ignoring_acpi: VmUnderTest
) -> None:
    old, node, pod = vm_ignoring_acpi.uid(), vm_ignoring_acpi.node(), vm_ignoring_acpi.pod()
    with stopped_kubelet(node):
        end_pod_processes(pod["metadata"]["uid"])
        name = pod["metadata"]["name"]
        space.kubectl(
            "patch", "pod", name, "--subresource=status", "--type=merge", "-p", '{"status": {"phase": "Failed"}}'
        )
        assert vm_ignoring_acpi.pods()[0]["status"]["containerStatuses"][0]["state"].get("running")
        wait_for(
            lambda: vm_ignoring_acpi.uid() != old,
            "the VMI is replaced after the handler's evidence",
            seconds=40,
            explain=vm_ignoring_acpi.diagnostics,
        )
    assert_replaced_once(vm_ignoring_acpi, old)


# ---- owners, labels and finalizers


@pytest.mark.parametrize("cascade", ["background", "foreground", "orphan"])
def test_deleted_vmi_is_replaced_by_single_copy_with_any_cascade(
    space: E2eNamespace, vm_ignoring_acpi: VmUnderTest, cascade: str
) -> None:
    old = vm_ignoring_acpi.uid()
    with at_most_one_qemu(space, vm_ignoring_acpi.name):
        space.kubectl("delete", "vmi", vm_ignoring_acpi.name, f"--cascade={cascade}", "--wait=false")
        if cascade == "orphan":
            wait_for(
                lambda: "is terminating" in wait_message(vm_ignoring_acpi),
                "the VMI reports what it waits for",
                explain=vm_ignoring_acpi.diagnostics,
            )
        assert_replaced_once(vm_ignoring_acpi, old)


@pytest.mark.parametrize("cascade", ["background", "foreground"])
def test_deleted_vm_deletes_its_vmi(space: E2eNamespace, vm_ignoring_acpi: VmUnderTest, cascade: str) -> None:
    with at_most_one_qemu(space, vm_ignoring_acpi.name):
        space.kubectl("delete", "vm", vm_ignoring_acpi.name, f"--cascade={cascade}", "--wait=false")
        vm_ignoring_acpi.until_gone(seconds=90)
    assert not qemu_pids(space, vm_ignoring_acpi.name)
    space.apply_vm(idle(vm_ignoring_acpi.name)).until_status("Running")


@pytest.mark.parametrize("gateway", [True, False])
def test_orphaned_vmi_continues_running_and_is_adopted_by_next_vm(
    space: E2eNamespace, vm_ignoring_acpi: VmUnderTest, gateway: bool
) -> None:
    old, (qemu,) = vm_ignoring_acpi.uid(), qemu_pids(space, vm_ignoring_acpi.name)
    manifest = idle(vm_ignoring_acpi.name, grace=GRACE)
    with contextlib.ExitStack() as stack:
        stack.enter_context(at_most_one_qemu(space, vm_ignoring_acpi.name))
        if not gateway:
            stack.enter_context(without_gateway(space.kubectl))
        space.kubectl("delete", "vm", vm_ignoring_acpi.name, "--cascade=orphan", "--timeout=60s")
        wait_for(lambda: not (vm_ignoring_acpi.vmi() or {})["metadata"].get("ownerReferences"), "it has no owner")
        assert_stays_true(
            lambda: vm_ignoring_acpi.phase() == "Running" and qemu_pids(space, vm_ignoring_acpi.name) == [qemu],
            "it runs on",
            seconds=8,
        )
        if not gateway:
            stack.close()
        space.apply(manifest)
        vm_ignoring_acpi.until_status("Running")
        wait_for(
            lambda: (
                (vm_ignoring_acpi.vmi() or {})["metadata"]["ownerReferences"][0]["uid"]
                == (vm_ignoring_acpi.vm() or {})["metadata"]["uid"]
            ),
            "the new machine owns it",
            explain=vm_ignoring_acpi.diagnostics,
        )
        assert vm_ignoring_acpi.uid() == old and qemu_pids(space, vm_ignoring_acpi.name) == [qemu]


def test_pod_without_owner_and_labels_is_still_counted_as_launcher(
    space: E2eNamespace, vm_ignoring_acpi: VmUnderTest
) -> None:
    old, pod = vm_ignoring_acpi.uid(), vm_ignoring_acpi.pod()["metadata"]["name"]
    with at_most_one_qemu(space, vm_ignoring_acpi.name):
        bare = {"metadata": {"ownerReferences": None, "labels": None}}
        space.kubectl("patch", "pod", pod, "--type=merge", "-p", json.dumps(bare))
        assert_stays_true(
            lambda: vm_ignoring_acpi.uid() == old and vm_ignoring_acpi.status() == "Running", "it runs on", seconds=6
        )
        space.kubectl("delete", "vmi", vm_ignoring_acpi.name, "--wait=false")
        assert_replaced_once(vm_ignoring_acpi, old)
    wait_for(lambda: not space.kubectl.get("pod", pod), "the pod has gone", seconds=60)


@pytest.mark.parametrize("gateway", [True, False])
def test_editor_cannot_remove_vmi_finalizer(space: E2eNamespace, vm_ignoring_acpi: VmUnderTest, gateway: bool) -> None:
    """With and without gateway. If an administrator removes the finalizer, it is restored."""
    user = f"system:serviceaccount:{space.name}:default"
    with contextlib.suppress(KubectlError):
        space.kubectl("create", "rolebinding", "edits", "--clusterrole=edit", f"--serviceaccount={space.name}:default")
    old = vm_ignoring_acpi.uid()
    bare = '{"metadata": {"finalizers": null}}'
    with contextlib.ExitStack() as stack:
        stack.enter_context(at_most_one_qemu(space, vm_ignoring_acpi.name))
        if not gateway:
            stack.enter_context(without_gateway(space.kubectl))
        document = vm_ignoring_acpi.vmi() or {}
        document["metadata"].pop("finalizers")
        with contextlib.suppress(KubectlError):
            space.kubectl("replace", "-f", "-", f"--as={user}", stdin=json.dumps(document))
        assert (vm_ignoring_acpi.vmi() or {})["metadata"].get("finalizers"), "a PUT without it took it off"
        space.kubectl("delete", "vmi", vm_ignoring_acpi.name, "--wait=false", f"--as={user}")
        with pytest.raises(KubectlError, match="finalizer"):
            space.kubectl("patch", "vmi", vm_ignoring_acpi.name, "--type=merge", "-p", bare, f"--as={user}")
        assert (vm_ignoring_acpi.vmi() or {})["metadata"]["uid"] == old
        assert_replaced_once(vm_ignoring_acpi, old)
        space.kubectl("patch", "vmi", vm_ignoring_acpi.name, "--type=merge", "-p", bare)
        wait_for(lambda: (vm_ignoring_acpi.vmi() or {})["metadata"].get("finalizers"), "it is put back", seconds=20)


def test_next_vmi_waits_for_pod_of_vmi_removed_without_finalizer(
    space: E2eNamespace, vm_ignoring_acpi: VmUnderTest
) -> None:
    """Finalizer, owners and VMI are removed: the next VMI of the name waits for the pod of the first."""
    old, pod = vm_ignoring_acpi.uid(), vm_ignoring_acpi.pod()["metadata"]["name"]
    with at_most_one_qemu(space, vm_ignoring_acpi.name):
        space.kubectl("patch", "pod", pod, "--type=merge", "-p", '{"metadata": {"ownerReferences": null}}')
        space.kubectl("delete", "vmi", vm_ignoring_acpi.name, "--wait=false")
        space.kubectl("patch", "vmi", vm_ignoring_acpi.name, "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
        words = wait_for(
            lambda: wait_message(vm_ignoring_acpi) if vm_ignoring_acpi.uid() not in ("", old) else "",
            "the next VMI reports what it waits for",
            explain=vm_ignoring_acpi.diagnostics,
        )
        assert pod in words and "earlier VirtualMachineInstance" in words
        assert_replaced_once(vm_ignoring_acpi, old)


# ---- nodes


def test_restarted_kubelet_keeps_vm_running_after_node_label_removal(
    space: E2eNamespace, vm_ignoring_acpi: VmUnderTest
) -> None:
    """A restarted kubelet admits its running pods again, and ends those that require a removed label.

    The handler, which would put the label back, is stopped.
    """
    node, old, (qemu,) = vm_ignoring_acpi.node(), vm_ignoring_acpi.uid(), qemu_pids(space, vm_ignoring_acpi.name)
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
            assert_stays_true(
                lambda: vm_ignoring_acpi.uid() == old and qemu_pids(space, vm_ignoring_acpi.name) == [qemu],
                "the guest runs on",
                seconds=20,
            )
            assert vm_ignoring_acpi.pod()["status"]["phase"] == "Running"
    finally:
        kubectl("label", "node", node, "--overwrite", f"{labels[0]}=true", f"{labels[1]}=false")
    wait_for(lambda: conditions(kubectl.get("node", node))["Ready"]["status"] == "True", f"{node} is Ready")
    vm_ignoring_acpi.until_status("Running")


def test_node_without_handler_gets_no_new_vm(space: E2eNamespace) -> None:
    """No label is involved: the kubelet drops the devices of a device plugin that has gone."""
    kubectl, node = space.kubectl, "node2"
    (handler,) = [
        pod
        for pod in kubectl.in_namespace(SYSTEM).items("pods", f"--selector={HANDLER}")
        if pod["spec"]["nodeName"] == node
    ]
    away: Json = {"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "node1"}}}}}
    system = kubectl.in_namespace(SYSTEM)
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
        waiting = space.apply_vm(idle("unserved", nodeSelector={"kubernetes.io/hostname": node}))
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


def test_fence_command_starts_vm_on_other_node(space: E2eNamespace, vm_ignoring_acpi: VmUnderTest) -> None:
    """Kubelet and handler of the node are stopped; an administrator ends QEMU there and runs `hyperctl fence`."""
    old, node, pod = vm_ignoring_acpi.uid(), vm_ignoring_acpi.node(), vm_ignoring_acpi.pod()
    with contextlib.ExitStack() as stack:
        stack.enter_context(at_most_one_qemu(space, vm_ignoring_acpi.name))
        space.kubectl("cordon", node)
        stack.callback(space.kubectl, "uncordon", node)
        stack.enter_context(stopped_kubelet(node))
        stack.enter_context(stopped_handler(space.kubectl, node))
        space.kubectl("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0", "--wait=false")
        wait_for(
            lambda: wait_message(vm_ignoring_acpi),
            "the VMI reports what it waits for",
            explain=vm_ignoring_acpi.diagnostics,
        )
        end_pod_processes(pod["metadata"]["uid"])
        assert_stays_true(
            lambda: vm_ignoring_acpi.uid() == old, "it is not replaced before the fence command", seconds=6
        )
        project(
            "cli", f"--kubeconfig={space.kubectl.kubeconfig}", "fence", "-n", space.name, vm_ignoring_acpi.name, "--yes"
        )
        assert_replaced_once(vm_ignoring_acpi, old)
        assert vm_ignoring_acpi.node() != node


def test_orphan_deletion_of_standalone_vmi_ends_its_pod(space: E2eNamespace) -> None:
    """The VMI has no owner, and its pod loses its owner. A launcher without VMI is ended."""
    alone = space.apply_vm(instance("lone", halting(), memory="64Mi", network=False, grace=2)).until_phase("Running")
    space.kubectl("delete", "vmi", "lone", "--cascade=orphan", "--timeout=90s")
    alone.until_gone(seconds=90)
    assert not qemu_pids(space, "lone")
