"""VMs whose pods have user namespaces, and VMs that run without one because it is not possible."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.manifests import booting, claim, cloud_init, drive, idle, persistent_claim, secret
from tests.e2e.processes import processes, wait_for_process
from tests.e2e.support import EXISTING, E2eNamespace, Json, Kubectl, VmUnderTest, project
from tests.e2e.test_networks import assert_nic_hotplug_and_unplug, network, nics
from tests.e2e.test_storage import volume_for
from tests.waiting import wait_for

MAC = "02:00:00:00:96:0e"
# A handler is killed meanwhile.
pytestmark = pytest.mark.alone


def has_user_namespaces(kubectl: Kubectl) -> bool:
    """Whether every node's runtime supports user namespaces."""
    handlers = [
        {each["name"]: each.get("features") or {} for each in node["status"].get("runtimeHandlers") or []}
        for node in kubectl.items("nodes")
    ]
    return all(each.get("", {}).get("userNamespaces") for each in handlers)


@pytest.fixture(scope="module", autouse=True)
def bridge_setup(space: E2eNamespace) -> Iterator[None]:
    """Skip without user namespaces; the bridge is on both nodes; volumes are deleted at the end."""
    if EXISTING:
        pytest.skip("needs nodes of its own")
    if not has_user_namespaces(space.kubectl):
        pytest.skip(
            "the nodes' container runtime has no user namespaces: 'python -m cluster build runc', then down and up"
        )
    project("cluster", "bridge", "br1", "--port", "eth1")
    yield
    space.kubectl("delete", "vm,vmi,pvc", "--all", "--timeout=90s")
    for volume in space.kubectl.items("persistentvolumes"):
        if volume["metadata"]["name"].startswith(f"{space.name}-"):
            space.kubectl("delete", "pv", volume["metadata"]["name"], "--wait=false")


@pytest.fixture(scope="module")
def vm_with_user_namespace(space: E2eNamespace, bridge_setup: None) -> VmUnderTest:
    """A VM with every kind of volume that can be id-mapped, on the pod network (NAT) and a bridge."""
    space.apply(
        network("lan"),
        volume_for(space, "data"),
        secret("keys", key="value"),
        secret("seed", userdata="#cloud-config\nhostname: mapped\n"),
    )
    return space.apply_vm(
        booting(
            "walled",
            claim("data", "data"),
            drive("scratch", {"emptyDisk": {"capacity": "16Mi"}}, serial="scratch"),
            drive("keys", {"secret": {"secretName": "keys"}}, serial="keys"),
            cloud_init(secretRef={"name": "seed"}),
            **nics(("lan", "lan", {})),
        )
    ).until_status("Running")


def namespace(pid: int) -> str:
    """The user namespace of a process."""
    return str(Path(f"/proc/{pid}/ns/user").readlink())


def test_launcher_processes_run_as_mapped_users(vm_with_user_namespace: VmUnderTest) -> None:
    pod = vm_with_user_namespace.pod()
    assert pod["spec"]["hostUsers"] is False
    qemu = wait_for_process(pod, lambda process: process.is_qemu)
    user = qemu.outside(107)
    assert user >= 1 << 16 and qemu.outside(0) == user - 107
    for process in processes(pod, "compute"):
        assert process.status["Uid"].split() == [str(user)] * 4, process
        assert namespace(process.pid) == namespace(qemu.pid) != namespace(os.getpid())


def test_two_vms_have_different_mapped_users(vm_with_user_namespace: VmUnderTest, space: E2eNamespace) -> None:
    beside = {"kubernetes.io/hostname": vm_with_user_namespace.node()}
    other = space.apply_vm(idle("other", nodeSelector=beside)).until_status("Running")
    users = {
        wait_for_process(machine.pod(), lambda process: process.is_qemu).outside(107)
        for machine in (vm_with_user_namespace, other)
    }
    assert len(users) == 2
    other.discard()


def test_guest_in_user_namespace_writes_to_its_disks(vm_with_user_namespace: VmUnderTest) -> None:
    told = vm_with_user_namespace.answer()
    assert {"data", "scratch", "keys"} <= {disk["serial"] for disk in told["disks"]}
    assert told["hostname"] == "mapped"
    for disk in ("data", "scratch"):
        vm_with_user_namespace.guest().write(disk, "kept")
        assert vm_with_user_namespace.guest().read(disk) == "kept"


def test_volume_files_keep_unmapped_owner(vm_with_user_namespace: VmUnderTest) -> None:
    """Through an id-mapped mount: a volume may come from a pod without a user namespace, and go back to one."""
    node = vm_with_user_namespace.node()
    listed = project("cluster", "exec", node, "--", "sh", "-c", "stat -c '%u %g' /var/lib/volumes/*-data/disk.img")
    assert "107 107" in listed.splitlines()


def test_nic_is_hotplugged_and_unplugged_in_user_namespace(vm_with_user_namespace: VmUnderTest) -> None:
    assert_nic_hotplug_and_unplug(vm_with_user_namespace, MAC)


def test_restarted_server_and_handler_keep_guest_running(vm_with_user_namespace: VmUnderTest) -> None:
    boot = vm_with_user_namespace.answer()["bootId"]
    qemu = wait_for_process(vm_with_user_namespace.pod(), lambda process: process.is_qemu)
    wait_for_process(vm_with_user_namespace.pod(), lambda process: process.is_server).kill()
    wait_for(
        lambda: wait_for_process(vm_with_user_namespace.pod(), lambda process: process.is_server),
        "the server is back",
        explain=vm_with_user_namespace.diagnostics,
    )
    system = vm_with_user_namespace.kubectl.in_namespace("hyperlet")
    (handler,) = [
        pod for pod in system.items("pods", "--selector=kubevirt.io=virt-handler")
        if pod["spec"]["nodeName"] == vm_with_user_namespace.node()
    ]  # fmt: skip
    name = handler["metadata"]["name"]

    def starts() -> int:
        statuses = (system.get("pod", name) or {})["status"]["containerStatuses"]
        (status,) = [each for each in statuses if each["name"] == "handler"]
        return int(status["restartCount"]) + bool(status["ready"])

    before = starts()
    for process in processes(handler, "handler"):
        if "handler" in process.command.split("\0"):
            process.kill()
    wait_for(lambda: starts() > before, "the handler is back", seconds=90)
    assert vm_with_user_namespace.answer()["bootId"] == boot and qemu.is_alive()
    wait_for(
        lambda: vm_with_user_namespace.phase() == "Running", "it still runs", explain=vm_with_user_namespace.diagnostics
    )


def test_vm_with_bridge_binding_runs_in_user_namespace(space: E2eNamespace) -> None:
    machine = space.apply_vm(booting("bridged", **nics(pod={"bridge": {}}))).until_status("Running")
    assert machine.pod()["spec"]["hostUsers"] is False
    assert machine.answer()["bootId"]
    machine.discard()


def test_disk_owned_by_root_is_chowned_to_qemu(space: E2eNamespace) -> None:
    """By the handler, through the container's id-mapped mount."""
    wanted = volume_for(space, "roots")
    folder = f"/var/lib/volumes/{space.name}-roots"
    project(
        "cluster", "exec", "node1", "--", "sh", "-c",
        f"chmod 755 {folder} && truncate -s 16M {folder}/disk.img && chmod 600 {folder}/disk.img",
    )  # fmt: skip
    space.apply(wanted)
    machine = space.apply_vm(booting("heir", claim("data", "roots"))).until_status("Running")
    assert machine.pod()["spec"]["hostUsers"] is False
    machine.answer()
    machine.guest().write("data", "inherited")
    owner = project("cluster", "exec", "node1", "--", "stat", "-c", "%u %g", f"{folder}/disk.img")
    assert owner.split() == ["107", "107"]
    machine.discard()


# ---- without user namespace


def unmapped(space: E2eNamespace, name: str) -> list[Json]:
    """A claim on a folder of a file system without id-mapped mounts: the node's root, an overlay."""
    folder, storage_class = f"/srv/{space.name}-{name}", f"unmapped-{secrets.token_hex(3)}"
    project("cluster", "exec", "node1", "--", "sh", "-c", f"mkdir -p {folder} && chmod 777 {folder}")
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{space.name}-{name}"},
        "spec": {
            "capacity": {"storage": "64Mi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "hostPath": {"path": folder, "type": "Directory"},
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"]}]}
                    ]
                }
            },
        },
    }
    return [volume, persistent_claim(name, "64Mi", storage_class)]


def test_vm_with_unmappable_volume_runs_without_user_namespace(space: E2eNamespace) -> None:
    space.apply(*unmapped(space, "odd"))
    machine = space.apply_vm(booting("odd", claim("data", "odd"))).until_status("Running")
    assert "hostUsers" not in machine.pod()["spec"]
    machine.until_message("user namespace", "recreating it without one")
    machine.answer()
    machine.guest().write("data", "kept")
    machine.run("Halted")
    machine.until_stopped()
    told = [event for event in space.events("odd") if event.startswith("NoUserNamespace")]
    machine.run("Always")
    machine.until_status("Running")
    assert "hostUsers" not in machine.pod()["spec"]
    machine.answer()
    assert machine.guest().read("data") == "kept"
    assert [event for event in space.events("odd") if event.startswith("NoUserNamespace")] == told, (
        "a further Event, although the node was known to be unable"
    )
    machine.discard()
