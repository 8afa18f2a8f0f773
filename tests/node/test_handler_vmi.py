"""A VMI in the handler from start to end: real sockets, cgroups, namespaces, gRPC; the API and the VM are fakes."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from handler.launchers.connection import LauncherConnection
from handler.storage.containerd import Containerd
from handler.storage.images import ImageMounts
from handler.vmi.node_setup import NodeSetup
from handler.vmi.reconciler import VmiReconciler
from tests.fakes.handler_objects import pod, vmi
from tests.node import netlab, podlab
from tests.node.handlerkube import HandlerKube
from tests.waiting import until

pytestmark = pytest.mark.node

NIC = {
    "domain": {
        "machine": {"type": "q35"},
        "memory": {"guest": "64Mi"},
        "devices": {"interfaces": [{"name": "default", "masquerade": {}, "macAddress": "52:54:00:12:34:56"}]},
    },
    "networks": [{"name": "default", "pod": {}}],
    "hostname": "web",
}


@pytest.fixture
def pods():
    path = Path(tempfile.mkdtemp(prefix="hl-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def lab(pods):
    with podlab.pod(pods) as made:
        yield made


@pytest.fixture
async def kube(tmp_path):
    async with HandlerKube.started(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def handler(kube: HandlerKube, pods: Path, attacher=None):
    """A handler until the end of the block: every one starts with nothing in its memory."""

    def launcher(uid: str, changed, limiter) -> LauncherConnection:
        return LauncherConnection(
            uid, changed, limiter, pods, heartbeat_seconds=0.3, answer_seconds=0.5, sandbox=podlab.sandbox
        )

    client = Containerd("/nonexistent/containerd.sock")
    machines = VmiReconciler(
        kube,
        "node1",
        NodeSetup(ImageMounts(client), "/proc/self/ns/net", attacher, pods / "nics"),
        lambda: "there is no /dev/kvm",
        launcher,
        pods,
    )
    machines.vmis.start()
    machines.pods.start()
    task = asyncio.create_task(machines.run())
    try:
        yield machines
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await machines.vmis.stop()
        await machines.pods.stop()
        await machines.close()
        await client.close()


def open_files(lab: podlab.Pod) -> set[str]:
    """Open files of this process that belong to the pod: its socket, its process, a raw socket in its namespace."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(fd.readlink())
            if lab.uid in target:
                found.add("launcher.sock")
            elif target.startswith("/proc/") and target.split("/")[2].isdigit() and target != f"/proc/{os.getpid()}/fd":
                found.add("proc")
            elif target.startswith("socket:") and _is_raw(int(fd.name)):
                found.add("raw6")
    return found


def _is_raw(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as copy:
        return copy.type == socket.SOCK_RAW and copy.family == socket.AF_INET6


def store_vmi(kube: HandlerKube, lab: podlab.Pod, **spec) -> None:
    kube.put(Pod, pod(lab.uid))
    kube.put(VirtualMachineInstance, vmi(pod=lab.uid, **spec))


async def test_scheduled_vmi_runs_with_one_patch_and_one_event(kube, lab, pods):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
        await asyncio.sleep(0.5)
    assert len(kube.patches) == 1, kube.patches[1:]
    assert kube.events == [("Normal", "Started", "The virtual machine is running")]
    assert kube.condition("Ready")["status"] == "True"
    assert kube.condition("LiveMigratable")["status"] == "False"
    assert "there is no /dev/kvm" in kube.condition("SoftwareEmulation")["message"]
    assert kube.status()["machine"] == {"type": "pc-q35-7.2"}
    assert [stamp["phase"] for stamp in kube.status()["phaseTransitionTimestamps"]] == ["Scheduled", "Running"]
    assert len(launcher.syncs()) == 1


async def test_network_is_sent_to_launcher_and_status(kube, pods):
    with netlab.node_and_pod() as (_, namespace), podlab.pod(pods, namespace) as lab:
        launcher = lab.launcher()
        store_vmi(kube, lab, **NIC)
        async with handler(kube, pods):
            await until(lambda: kube.status()["phase"] == "Running")
        sync = launcher.syncs()[0]
        assert "tap0" in namespace.run("ip link")
    [interface] = kube.status()["interfaces"]
    assert interface["ipAddresses"] == [netlab.POD4, netlab.POD6] and interface["ipAddress"] == netlab.POD4
    assert (interface["name"], interface["mac"], interface["infoSource"]) == ("default", "52:54:00:12:34:56", "domain")
    [nic] = sync["nics"]
    assert (nic["tap"], nic["mac"], nic["mtu"]) == ("tap0", "52:54:00:12:34:56", 1500)
    dhcp = nic["dhcp4"]
    assert (dhcp["device"], dhcp["server"], dhcp["router"]) == ("k6t-eth0", "10.0.2.1", "10.0.2.1")
    assert (dhcp["address"], dhcp["prefix"], dhcp["hostname"]) == ("10.0.2.2", 24, "web")
    assert nic["dhcp6"]["address"] == "fd10:0:2::2"
    document = json.loads(base64.b64decode(sync["vmi"]))
    assert document["metadata"]["uid"] == "vmi-uid" and document["spec"]["domain"]["machine"]["type"] == "q35"
    assert document["spec"] == vmi(**NIC)["spec"]
    assert (sync["vmi_uid"], sync["links"]) == ("vmi-uid", [{"name": "default", "up": True}])


async def test_handler_restart_writes_nothing(kube, pods):
    with netlab.node_and_pod() as (_, namespace), podlab.pod(pods, namespace) as lab:
        launcher = lab.launcher()
        store_vmi(kube, lab, **NIC)
        async with handler(kube, pods):
            await until(lambda: kube.status()["phase"] == "Running")
        before = namespace.run("nft -a list ruleset; ip -o link | cut -d: -f1,2")
        async with handler(kube, pods) as machines:
            await until(lambda: any(machine.resources for machine in machines._tracked.values()))
            await asyncio.sleep(2.5)
        assert namespace.run("nft -a list ruleset; ip -o link | cut -d: -f1,2") == before
        assert len(kube.patches) == len(kube.events) == len(launcher.syncs()) == 1


async def test_launcher_server_restart_is_survived(kube, lab, pods):
    first = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods) as machines:
        await until(lambda: kube.status()["phase"] == "Running")
        first.kill()
        await until(lambda: machines._tracked[lab.uid].launcher.trouble)
        second = lab.launcher()
        second.set_behaviour(report={"state": "DOMAIN_STATE_RUNNING", "machine": "pc-q35-7.2", "accelerator": "tcg"})
        await until(lambda: not machines._tracked[lab.uid].launcher.trouble)
        second.set_behaviour(report={"state": "DOMAIN_STATE_PAUSED"})
        await until(lambda: kube.condition("Paused"))
    assert second.syncs() == []
    # Running, Paused and perhaps the moment between the new server's start and its first report.
    assert kube.condition("Synchronized")["status"] == "True"


async def test_vmi_refused_by_launcher_fails_with_message(kube, lab, pods):
    launcher = lab.launcher()
    launcher.set_behaviour(refuse=["INVALID_ARGUMENT", "spec.domain.cpu.model: no such model"])
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Failed")
        await asyncio.sleep(0.5)
    said = kube.condition("Synchronized")
    assert (said["status"], said["reason"]) == ("False", "SyncFailed")
    assert said["message"] == "spec.domain.cpu.model: no such model"
    assert kube.events == [("Warning", "SyncFailed", "spec.domain.cpu.model: no such model")]
    assert len(launcher.syncs()) == 1 and len(kube.patches) == 1


async def test_missing_disk_fails_vmi_and_is_named(kube, lab, pods):
    lab.launcher().set_behaviour(refuse=["NOT_FOUND", "volume data: disk.img is not there"])
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Failed")
    assert "volume data" in kube.condition("Synchronized")["message"]


async def test_libvirt_error_is_reported_and_retried(kube, lab, pods):
    launcher = lab.launcher()
    launcher.set_behaviour(refuse=["INTERNAL", "internal error: process exited while connecting to monitor"])
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: "process exited" in kube.condition("Synchronized").get("message", ""))
        assert kube.status()["phase"] == "Scheduled"
        launcher.set_behaviour(refuse=None)
        await until(lambda: kube.status()["phase"] == "Running")
    assert kube.condition("Synchronized")["status"] == "True"
    assert [reason for _, reason, _ in kube.events] == ["SyncFailed", "Started"]


@pytest.mark.parametrize(
    ("state", "phase", "type", "event"),
    [
        ("DOMAIN_STATE_SHUTOFF", "Succeeded", "Normal", "Stopped"),
        ("DOMAIN_STATE_CRASHED", "Failed", "Warning", "Crashed"),
    ],
)
async def test_end_of_vm_is_reported_once(kube, lab, pods, state, phase, type, event):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
        launcher.set_behaviour(report={"state": state, "reason": "Because", "message": "it is over"})
        await until(lambda: kube.status()["phase"] == phase)
        await asyncio.sleep(0.3)
    assert len(kube.patches) == 2
    assert kube.events[1] == (type, event, "The virtual machine ended: it is over")
    assert kube.condition("Ready")["status"] == "False"


async def test_deleted_vmi_gets_one_event_and_no_patch(kube, lab, pods):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
        going = kube.document(VirtualMachineInstance, "test", "vm")
        metadata = {**going["metadata"], "deletionTimestamp": "2026-01-01T00:01:00Z"}
        kube.put(VirtualMachineInstance, {**going, "metadata": metadata})
        launcher.set_behaviour(report={"state": "DOMAIN_STATE_SHUTOFF", "message": "the guest shut down"})
        await until(lambda: len(kube.events) == 2)
        launcher.set_behaviour(
            report={"state": "DOMAIN_STATE_SHUTOFF", "message": "the guest shut down", "reason": "Shutdown"}
        )
        await asyncio.sleep(0.3)
    assert kube.events[1:] == [("Normal", "Stopped", "The virtual machine ended: the guest shut down")]
    assert len(kube.patches) == 1


async def test_deleted_pod_costs_one_patch_for_cause_and_one_for_end(kube, lab, pods):
    launcher = lab.launcher()
    launcher.set_behaviour(report={"agent_connected": True})
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
        going = kube.document(Pod, "test", "virt-launcher-vm-abcde")
        kube.put(Pod, {**going, "metadata": {**going["metadata"], "deletionTimestamp": "2026-01-01T00:01:00Z"}})
        launcher.set_behaviour(report={"agent_connected": False})
        launcher.set_behaviour(report={"state": "DOMAIN_STATE_SHUTDOWN"})
        await asyncio.sleep(2.5)
        launcher.set_behaviour(report={"state": "DOMAIN_STATE_SHUTOFF", "message": "the guest shut down"})
        await until(lambda: kube.status()["phase"] == "Succeeded")
    assert [reason for _, reason, _ in kube.events] == ["Started", "PodDeleted", "Stopped"]
    assert len(kube.patches) == 3


async def test_pause_and_io_error_are_reported(kube, lab, pods):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
        launcher.set_behaviour(report={"state": "DOMAIN_STATE_PAUSED"})
        await until(lambda: kube.condition("Paused").get("reason") == "PausedByUser")
        assert kube.condition("Ready")["status"] == "False"
        launcher.set_behaviour(report={"state": "DOMAIN_STATE_RUNNING"})
        await until(lambda: not kube.condition("Paused"))
        assert kube.condition("Ready")["status"] == "True"
        launcher.set_behaviour(report={"state": "DOMAIN_STATE_IO_ERROR", "message": "disk data: no space left"})
        await until(lambda: kube.condition("Paused").get("reason") == "PausedIOError")
        await asyncio.sleep(0.1)
    assert kube.events[-1] == ("Warning", "PausedIOError", "The virtual machine is paused: disk data: no space left")


async def test_agent_changes_are_written_in_one_patch(kube, lab, pods):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
        launcher.set_behaviour(report={"agent_connected": True})
        await asyncio.sleep(0.3)
        launcher.set_behaviour(report={"guest": {"os": {"name": "Debian"}}})
        await asyncio.sleep(0.3)
        launcher.set_behaviour(report={"guest": {"os": {"name": "Debian", "version_id": "13"}}})
        await until(lambda: kube.condition("AgentConnected"))
    assert kube.status()["guestOSInfo"] == {"name": "Debian", "versionId": "13"}
    assert len(kube.patches) == 2


async def test_pod_with_forged_label_is_ignored(kube, lab, pods):
    launcher = lab.launcher()
    forged = pod(lab.uid, owner="somebody-else")
    forged["metadata"]["labels"]["kubevirt.io/created-by"] = "vmi-uid"
    kube.put(Pod, forged)
    kube.put(VirtualMachineInstance, vmi(pod=lab.uid))
    async with handler(kube, pods):
        await asyncio.sleep(1)
    assert launcher.syncs() == [] and kube.patches == []


async def test_pod_with_removed_owner_is_still_managed(kube, lab, pods):
    """Owners can be edited while the guest runs; what the pod was made for cannot."""
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
        document = kube.document(Pod, "test", "virt-launcher-vm-abcde")
        kube.put(Pod, {**document, "metadata": {**document["metadata"], "ownerReferences": []}})
        launcher.set_behaviour(report={"state": "DOMAIN_STATE_SHUTOFF"})
        await until(lambda: kube.status()["phase"] == "Succeeded")


async def test_end_of_vanished_pod_is_confirmed_when_no_process_is_left(kube, lab, pods):
    """The pod's object is deleted by force while its kubelet does not answer: only the handler knows that QEMU runs."""
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
    kube.remove(Pod, "test", "virt-launcher-vm-abcde")
    async with handler(kube, pods):
        await asyncio.sleep(2.5)
        assert kube.status()["activePods"] == {lab.uid: "node1"}
        launcher.kill()
        lab.sandbox.close()
        await until(lambda: not kube.status()["activePods"])
    assert kube.patches[-1]["status"] == {"activePods": {lab.uid: None}}


async def test_end_of_failed_pod_is_confirmed_when_all_processes_have_ended(kube, lab, pods):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
        document = kube.document(Pod, "test", "virt-launcher-vm-abcde")
        kube.put(Pod, {**document, "status": {"phase": "Failed", "reason": "Preempting"}})
        await asyncio.sleep(2.5)
        assert kube.status()["activePods"] == {lab.uid: "node1"}
        launcher.kill()
        lab.sandbox.close()
        await until(lambda: not kube.status()["activePods"])


async def test_vmi_of_other_node_is_ignored(kube, lab, pods):
    launcher = lab.launcher()
    kube.put(Pod, pod(lab.uid))
    kube.put(VirtualMachineInstance, vmi() | {"status": {"phase": "Scheduled", "nodeName": "node2"}})
    async with handler(kube, pods):
        await asyncio.sleep(0.5)
    assert launcher.syncs() == [] and kube.patches == []


async def test_identity_reported_by_launcher_is_ignored(kube, lab, pods):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    kube.put(VirtualMachineInstance, vmi("victim", "victim-uid"))
    launcher.set_behaviour(report={"vmi_uid": "victim-uid", "state": "DOMAIN_STATE_SHUTOFF"})
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Succeeded")
        await asyncio.sleep(0.2)
    assert kube.status("victim")["phase"] == "Scheduled"


async def test_flood_of_guest_reports_is_limited(kube, lab, pods):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
        interfaces = [{"name": f"eth{n}", "mac": "", "addresses": [f"10.0.{n % 256}.1/24"] * 20} for n in range(2000)]
        launcher.set_behaviour(
            report={
                "agent_connected": True,
                "guest": {"interfaces": interfaces, "os": {"name": "a\x1b[31m" + "b" * 5000}},
            }
        )
        await until(lambda: kube.condition("AgentConnected"))
    assert len(kube.status().get("interfaces", [])) <= 33
    assert len(kube.status()["guestOSInfo"]["name"]) <= 256 and "\x1b" not in kube.status()["guestOSInfo"]["name"]


async def test_pod_unknown_to_controller_is_ignored(kube, lab, pods):
    launcher = lab.launcher()
    kube.put(Pod, pod(lab.uid))
    document = vmi()
    document["status"]["activePods"] = {"another-pod": "node1"}
    kube.put(VirtualMachineInstance, document)
    async with handler(kube, pods):
        await asyncio.sleep(0.5)
    assert launcher.syncs() == [] and kube.patches == []


async def test_flapping_launcher_does_not_flood_api_server(kube, lab, pods):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
        for _ in range(60):
            launcher.set_behaviour(report={"state": "DOMAIN_STATE_PAUSED"})
            await asyncio.sleep(0.03)
            launcher.set_behaviour(report={"state": "DOMAIN_STATE_RUNNING"})
            await asyncio.sleep(0.03)
        assert len(kube.patches) == 20
        launcher.set_behaviour(report={"state": "DOMAIN_STATE_SHUTOFF"})
        await until(lambda: kube.status()["phase"] == "Succeeded")


async def test_sync_without_effect_is_retried_with_increasing_delay(kube, lab, pods):
    launcher = lab.launcher()
    launcher.set_behaviour(starts=False)
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: "the VM is not running" in kube.condition("Synchronized").get("message", ""), seconds=60)
        # Reported after the sixth round without effect; pauses of 0.2, 0.4, ... 6.4 s came before.
        assert 6 <= len(launcher.syncs()) <= 8
        assert kube.condition("Synchronized")["reason"] == "NoProgress"
        launcher.set_behaviour(starts=True)
        launcher.set_behaviour(report={"state": "DOMAIN_STATE_RUNNING"})
        await until(lambda: kube.status()["phase"] == "Running")
    assert kube.condition("Synchronized")["status"] == "True"
    assert [reason for _, reason, _ in kube.events] == ["NoProgress", "Started"]


async def test_api_server_outage_is_survived(kube, lab, pods):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
        kube.away = True
        launcher.set_behaviour(report={"state": "DOMAIN_STATE_SHUTOFF", "message": "the guest shut down"})
        await asyncio.sleep(3)
        launcher.kill()
        kube.away = False
        await until(lambda: kube.status()["phase"] == "Succeeded")


async def test_hanging_launcher_is_detected_and_recovers(kube, lab, pods):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods) as machines:
        await until(lambda: kube.status()["phase"] == "Running")
        os.kill(launcher.pid, signal.SIGSTOP)
        await until(lambda: "hangs" in machines._tracked[lab.uid].launcher.trouble)
        os.kill(launcher.pid, signal.SIGCONT)
        await until(lambda: not machines._tracked[lab.uid].launcher.trouble)
        launcher.set_behaviour(report={"state": "DOMAIN_STATE_PAUSED"})
        await until(lambda: kube.condition("Paused"))
    assert len(launcher.syncs()) == 1


async def test_late_launcher_is_found(kube, lab, pods):
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await asyncio.sleep(0.3)
        lab.launcher()
        await until(lambda: kube.status()["phase"] == "Running")
    assert len(kube.patches) == 1


async def test_unavailable_image_is_reported(kube, lab, pods):
    lab.launcher()
    store_vmi(kube, lab, volumes=[{"name": "root", "containerDisk": {"image": "registry.test/none:1"}}])
    async with handler(kube, pods):
        await until(
            lambda: "/nonexistent/containerd.sock" in kube.condition("Synchronized").get("message", ""), seconds=40
        )
        await asyncio.sleep(0.1)
    assert kube.status()["phase"] == "Scheduled"
    assert kube.events[0][0] == "Warning"


async def test_resources_are_released_with_pod(kube, pods):
    with netlab.node_and_pod() as (_, namespace), podlab.pod(pods, namespace) as lab:
        lab.launcher()
        store_vmi(kube, lab, **NIC)
        async with handler(kube, pods) as machines:
            await until(lambda: kube.status()["phase"] == "Running")
            assert {"launcher.sock", "proc", "raw6"} <= open_files(lab)
            kube.remove(Pod, "test", "virt-launcher-vm-abcde")
            await until(lambda: len(machines) == 0 and not open_files(lab))


async def test_ended_pod_object_holds_no_resources(kube, pods):
    with netlab.node_and_pod() as (_, namespace), podlab.pod(pods, namespace) as lab:
        launcher = lab.launcher()
        store_vmi(kube, lab, **NIC)
        async with handler(kube, pods) as machines:
            await until(lambda: kube.status()["phase"] == "Running")
            launcher.set_behaviour(report={"state": "DOMAIN_STATE_SHUTOFF", "message": "the guest shut down"})
            await until(lambda: kube.status()["phase"] == "Succeeded")
            stays = kube.document(Pod, "test", "virt-launcher-vm-abcde")
            ended = [{"name": "compute", "state": {"terminated": {"exitCode": 0}}}]
            kube.put(Pod, {**stays, "status": {"phase": "Succeeded", "containerStatuses": ended}})
            await until(lambda: machines._tracked[lab.uid].retired)
            await until(lambda: not open_files(lab))
            kube.remove(Pod, "test", "virt-launcher-vm-abcde")
            await until(lambda: len(machines) == 0)
    assert len(kube.patches) == 2


async def test_pod_vanished_during_downtime_is_reported_after_late_list(kube, lab, pods, monkeypatch):
    launcher = lab.launcher()
    store_vmi(kube, lab)
    async with handler(kube, pods):
        await until(lambda: kube.status()["phase"] == "Running")
    kube.remove(Pod, "test", "virt-launcher-vm-abcde")
    launcher.kill()
    lab.sandbox.close()
    listing, known = kube.list, asyncio.Event()

    async def late(kind, *words, **more):
        if kind is Pod:
            await known.wait()
        return await listing(kind, *words, **more)

    monkeypatch.setattr(kube, "list", late)
    async with handler(kube, pods):
        await asyncio.sleep(0.5)
        known.set()
        await until(lambda: not kube.status()["activePods"])
