"""Virtual machines whose pods have user namespaces of their own; and those that cannot have one run without."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.manifests import booting, claim, cloud_init, drive, idle, persistent_claim, secret
from tests.e2e.processes import processes, the
from tests.e2e.support import EXISTING, Json, Kubectl, Machine, Space, project
from tests.e2e.test_networks import network, nics, plugged_in_and_out
from tests.e2e.test_storage import volume_for
from tests.waiting import wait_for

MAC = "02:00:00:00:96:0e"
# A handler is killed meanwhile.
pytestmark = pytest.mark.alone


def can(kubectl: Kubectl) -> bool:
    """Whether every node's runtime says so."""
    handlers = [
        {each["name"]: each.get("features") or {} for each in node["status"].get("runtimeHandlers") or []}
        for node in kubectl.items("nodes")
    ]
    return all(each.get("", {}).get("userNamespaces") for each in handlers)


@pytest.fixture(scope="module", autouse=True)
def house(space: Space) -> Iterator[None]:
    """Nodes that can, a bridge of theirs; volumes are taken away at the end."""
    if EXISTING:
        pytest.skip("needs nodes of its own")
    if not can(space.kubectl):
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
def walled(space: Space, house: None) -> Machine:
    """A machine with volumes of every kind that can be mapped, its NAT and a bridge."""
    space.apply(
        network("lan"),
        volume_for(space, "data"),
        secret("keys", key="value"),
        secret("seed", userdata="#cloud-config\nhostname: mapped\n"),
    )
    return space.machine(
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


def test_its_processes_are_users_that_nothing_else_on_the_node_is(walled: Machine) -> None:
    pod = walled.pod()
    assert pod["spec"]["hostUsers"] is False
    qemu = the(pod, lambda process: process.is_qemu)
    user = qemu.outside(107)
    assert user >= 1 << 16 and qemu.outside(0) == user - 107
    for process in processes(pod, "compute"):
        assert process.status["Uid"].split() == [str(user)] * 4, process
        assert namespace(process.pid) == namespace(qemu.pid) != namespace(os.getpid())


def test_no_two_machines_share_users(walled: Machine, space: Space) -> None:
    beside = {"kubernetes.io/hostname": walled.node()}
    other = space.machine(idle("other", nodeSelector=beside)).until_status("Running")
    users = {the(machine.pod(), lambda process: process.is_qemu).outside(107) for machine in (walled, other)}
    assert len(users) == 2
    other.discard()


def test_the_guest_has_its_disks_and_writes_to_them(walled: Machine) -> None:
    told = walled.answer()
    assert {"data", "scratch", "keys"} <= {disk["serial"] for disk in told["disks"]}
    assert told["hostname"] == "mapped"
    for disk in ("data", "scratch"):
        walled.guest().write(disk, "kept")
        assert walled.guest().read(disk) == "kept"


def test_what_is_on_the_volume_belongs_to_the_same_user_as_ever(walled: Machine) -> None:
    """Through an id-mapped mount: a volume may come from a pod without a user namespace, and go back to one."""
    node = walled.node()
    listed = project("cluster", "exec", node, "--", "sh", "-c", "stat -c '%u %g' /var/lib/volumes/*-data/disk.img")
    assert "107 107" in listed.splitlines()


def test_a_card_is_plugged_in_and_out(walled: Machine) -> None:
    plugged_in_and_out(walled, MAC)


def test_a_server_and_a_handler_that_start_again_find_the_guest(walled: Machine) -> None:
    boot = walled.answer()["bootId"]
    qemu = the(walled.pod(), lambda process: process.is_qemu)
    the(walled.pod(), lambda process: process.is_server).kill()
    wait_for(lambda: the(walled.pod(), lambda process: process.is_server), "the server is back", explain=walled.story)
    system = walled.kubectl.within("hyperlet")
    (handler,) = [
        pod for pod in system.items("pods", "--selector=kubevirt.io=virt-handler")
        if pod["spec"]["nodeName"] == walled.node()
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
    assert walled.answer()["bootId"] == boot and qemu.lives()
    wait_for(lambda: walled.phase() == "Running", "it still runs", explain=walled.story)


def test_a_machine_with_the_bridge_binding_runs(space: Space) -> None:
    machine = space.machine(booting("bridged", **nics(pod={"bridge": {}}))).until_status("Running")
    assert machine.pod()["spec"]["hostUsers"] is False
    assert machine.answer()["bootId"]
    machine.discard()


def test_a_disk_that_is_roots_is_handed_over(space: Space) -> None:
    """By the handler, through the container's id-mapped mount."""
    wanted = volume_for(space, "roots")
    folder = f"/var/lib/volumes/{space.name}-roots"
    project(
        "cluster", "exec", "node1", "--", "sh", "-c",
        f"chmod 755 {folder} && truncate -s 16M {folder}/disk.img && chmod 600 {folder}/disk.img",
    )  # fmt: skip
    space.apply(wanted)
    machine = space.machine(booting("heir", claim("data", "roots"))).until_status("Running")
    assert machine.pod()["spec"]["hostUsers"] is False
    machine.answer()
    machine.guest().write("data", "inherited")
    owner = project("cluster", "exec", "node1", "--", "stat", "-c", "%u %g", f"{folder}/disk.img")
    assert owner.split() == ["107", "107"]
    machine.discard()


# ---- what cannot have one


def unmapped(space: Space, name: str) -> list[Json]:
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


def test_a_volume_that_cannot_be_mapped_costs_the_namespace_and_not_the_machine(space: Space) -> None:
    space.apply(*unmapped(space, "odd"))
    machine = space.machine(booting("odd", claim("data", "odd"))).until_status("Running")
    assert "hostUsers" not in machine.pod()["spec"]
    machine.until_told("user namespace", "recreating it without one")
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
    assert [event for event in space.events("odd") if event.startswith("NoUserNamespace")] == told, "it was known"
    machine.discard()
