"""A launcher with real libvirt and QEMU: starting, ending, errors. The faults are in test_launcher_faults.py."""

import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import grpc
import pytest

from launcher.domain import pci
from protos import launcher_pb2 as pb
from tests.node import bootsector, launcherlab
from tests.node.launcherlab import Pod, catches, children, disk_vmi, drain, follow
from tests.waiting import wait_for

pytestmark = pytest.mark.node
GOLDEN = pathlib.Path(__file__).parents[1] / "golden/domain"


@pytest.fixture
def pod() -> Iterator[Pod]:
    with Pod() as pod:
        yield pod


def run(pod: Pod, guest: bytes, **spec: Any) -> pb.Report:
    pod.image("root", guest)
    pod.start()
    return pod.sync(disk_vmi(**spec))


def refusal(pod: Pod, document: dict[str, Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        pod.sync(document)
    return raised.value.code(), raised.value.details() or ""


def test_vm_runs_and_console_is_in_pod_log(pod: Pod) -> None:
    report = run(pod, bootsector.ignoring_power_button())
    assert (report.vmi_uid, report.state) == ("uid-1", pb.DOMAIN_STATE_RUNNING)
    assert report.accelerator == "tcg" and report.machine.startswith("pc-q35-")
    assert [(disk.volume, disk.target, disk.size) for disk in report.disks] == [("root", "vda", bootsector.SIZE)]
    status = pathlib.Path(f"/proc/{report.qemu_pid}/status").read_text()
    assert "Uid:\t107\t107\t107\t107" in status and "CapEff:\t0000000000000000" in status
    wait_for(lambda: b"hello" in pod.output.read_bytes(), "the guest's greeting")
    # Sync is idempotent: the same again changes nothing, another VMI is refused.
    again = pod.sync(disk_vmi())
    assert (again.state, again.qemu_pid) == (pb.DOMAIN_STATE_RUNNING, report.qemu_pid)
    code, words = refusal(pod, disk_vmi(uid="uid-2"))
    assert code == grpc.StatusCode.FAILED_PRECONDITION and "belongs to the VMI with UID uid-1" in words


def test_sigterm_shuts_guest_down(pod: Pod) -> None:
    run(pod, bootsector.obeying_power_button())
    reports = follow(pod)
    pod.wait_state(pb.DOMAIN_STATE_RUNNING)
    pod.terminate()
    pod.terminate()  # a second one does no harm
    assert pod.wait() == 0
    assert pod.termination() == {"phase": "Succeeded", "reason": "Terminated", "message": "the guest shut down"}
    last = drain(reports)[-1]
    assert (last.state, last.reason) == (pb.DOMAIN_STATE_SHUTOFF, "Terminated")


def test_guest_ignoring_shutdown_is_killed_after_grace_period(pod: Pod) -> None:
    pod.grace = 1
    report = run(pod, bootsector.ignoring_power_button())
    pod.terminate()
    assert pod.wait() == 0
    assert pod.termination()["reason"] == "ForceOff"
    assert not pathlib.Path(f"/proc/{report.qemu_pid}").exists()


def test_paused_guest_is_shut_down(pod: Pod) -> None:
    assert run(pod, bootsector.obeying_power_button(), startStrategy="Paused").state == pb.DOMAIN_STATE_PAUSED
    pod.terminate()
    wait_for(lambda: b"hello" in pod.output.read_bytes(), "the guest to go on")
    assert pod.wait() == 0


def test_pause_and_unpause_change_state(pod: Pod) -> None:
    assert run(pod, bootsector.ignoring_power_button(), startStrategy="Paused").state == pb.DOMAIN_STATE_PAUSED
    with pod.client() as client:
        assert client.Unpause(pb.UnpauseRequest()).state == pb.DOMAIN_STATE_RUNNING
        assert client.Pause(pb.PauseRequest()).state == pb.DOMAIN_STATE_PAUSED
    assert pod.report().state == pb.DOMAIN_STATE_PAUSED


def test_guest_powering_off_succeeds(pod: Pod) -> None:
    pod.image("root", bootsector.powering_off())
    pod.start()
    reports = follow(pod)
    wait_for(lambda: not reports.empty(), "the first report")
    pod.sync(disk_vmi())
    assert pod.wait() == 0
    assert pod.termination()["phase"] == "Succeeded"
    assert drain(reports)[-1].state == pb.DOMAIN_STATE_SHUTOFF


def test_guest_panicking_fails(pod: Pod) -> None:
    pod.image("root", bootsector.panicking())
    pod.start()
    reports = follow(pod)
    wait_for(lambda: not reports.empty(), "the first report")
    pod.sync(disk_vmi())
    assert pod.wait() == 1
    assert (pod.termination()["phase"], pod.termination()["reason"]) == ("Failed", "Panicked")
    last = drain(reports)[-1]
    assert (last.state, last.reason) == (pb.DOMAIN_STATE_CRASHED, "Panicked")


def test_shutdown_by_handler_ends_guest(pod: Pod) -> None:
    run(pod, bootsector.ignoring_power_button())
    reports = follow(pod)
    with pod.client() as client:
        client.Shutdown(pb.ShutdownRequest(grace_seconds=1))
    assert pod.wait() == 0
    assert pod.termination()["reason"] == drain(reports)[-1].reason == "ForceOff"


def test_sigterm_before_first_sync_ends_launcher_immediately(pod: Pod) -> None:
    pod.start()
    assert pod.report().state == pb.DOMAIN_STATE_NONE
    pod.terminate()
    assert pod.wait() == 0
    assert pod.termination()["reason"] == "NeverStarted"


def test_launcher_waits_for_wake_by_handler(pod: Pod) -> None:
    pod.start(wake=False)
    wait_for((pod.run / "wake.fifo").exists, "the supervisor")
    time.sleep(1)
    assert children(pod.pid) == []
    pod.wake()
    assert pod.report().state == pb.DOMAIN_STATE_NONE
    assert not (pod.run / "wake.fifo").exists()


def test_launcher_without_wake_starts_after_timeout(pod: Pod) -> None:
    """A handler of an older version does not wake launchers."""
    pod.start(wake=False, HYPERLET_WAKE_SECONDS="1")
    assert pod.report().state == pb.DOMAIN_STATE_NONE


def test_sigterm_while_waiting_for_wake_ends_launcher(pod: Pod) -> None:
    pod.start(wake=False)
    wait_for((pod.run / "wake.fifo").exists, "the supervisor")
    # The FIFO is made before signals are caught.
    wait_for(lambda: catches(pod.pid, signal.SIGTERM), "the supervisor listens")
    pod.terminate()
    assert pod.wait() == 0
    assert pod.termination()["reason"] == "NeverStarted"


def test_sigterm_during_server_start_ends_launcher(pod: Pod) -> None:
    pod.start()
    wait_for((pod.run / "serial.fifo").exists, "the supervisor")
    wait_for(lambda: pod.child("launcher"), "the server")
    pod.terminate()
    assert pod.wait() == 0


def test_sync_errors_name_cause_and_can_be_corrected(pod: Pod) -> None:
    pod.start()
    assert refusal(pod, {"metadata": {}}) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "vmi_uid: required; update the handler of this node",
    )
    code, words = refusal(pod, disk_vmi())
    assert code == grpc.StatusCode.NOT_FOUND
    assert words == "volume root: the image guest is not mounted at /images/root"
    broken = disk_vmi()
    broken["spec"]["domain"]["devices"]["disks"][0]["name"] = "other"
    code, words = refusal(pod, broken)
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "spec.domain.devices.disks[0].name" in words
    unknown_cpu = disk_vmi(
        domain={"cpu": {"model": "Nonesuch"}, "devices": {"autoattachPodInterface": False}, "memory": {"guest": "64Mi"}}
    )
    pod.image("root", bootsector.ignoring_power_button())
    code, words = refusal(pod, unknown_cpu)
    assert code == grpc.StatusCode.INTERNAL and "Nonesuch" in words
    assert pod.report().state == pb.DOMAIN_STATE_NONE
    assert pod.sync(disk_vmi()).state == pb.DOMAIN_STATE_RUNNING


def test_image_with_invalid_disk_is_refused(pod: Pod) -> None:
    pod.image("root", b"no disk at all")
    pod.start()
    code, words = refusal(pod, disk_vmi())
    assert code == grpc.StatusCode.NOT_FOUND
    assert words.startswith("volume root: the image guest: /disk/guest.img is not a disk")


def test_names_with_xml_and_shell_characters_are_accepted(pod: Pod) -> None:
    pod.image("root", bootsector.ignoring_power_button())
    pod.start()
    evil = "$(touch /tmp/x)'\"<&>]]>"
    document = disk_vmi()
    document["metadata"]["labels"] = document["metadata"]["annotations"] = {"a": evil}
    document["spec"]["domain"]["firmware"]["serial"] = evil
    document["spec"]["volumes"].append({"name": "cloud", "cloudInitNoCloud": {"userData": evil}})
    document["spec"]["domain"]["devices"]["disks"].append({"name": "cloud", "cdrom": {"bus": "sata"}})
    report = pod.sync(document)
    assert report.state == pb.DOMAIN_STATE_RUNNING
    assert [disk.target for disk in report.disks] == ["vda", "sda"]
    assert evil.encode() in pathlib.Path(f"/proc/{report.qemu_pid}/cmdline").read_bytes().replace(b",,", b",")


def test_guest_flooding_console_keeps_running(pod: Pod) -> None:
    report = run(pod, bootsector.flooding())
    wait_for(lambda: pod.output.stat().st_size > 100_000, "output")
    assert pod.report().qemu_pid == report.qemu_pid
    pod.grace = 1
    with pod.client() as client:
        client.Shutdown(pb.ShutdownRequest(grace_seconds=0))
    assert pod.wait() == 0


def test_golden_domains_are_accepted_by_libvirt(pod: Pod) -> None:
    pod.start()
    pod.report()
    socket = wait_for(
        lambda: (
            next(pod.run.glob("libvirt/run/libvirt/*d-sock*"), None)
            or next(pod.run.glob("libvirt/run/libvirt/libvirt-sock"), None)
        ),
        "libvirt's socket",
    )

    def virsh(*words: str, text: str = "") -> str:
        command = ["virsh", "-c", f"qemu+unix:///session?socket={socket}", *words]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{golden.name}: {done.stderr}"
        return done.stdout

    for golden in sorted(GOLDEN.glob("*.tcg.xml")):
        text = golden.read_text().replace('machine="pc-q35-7.2"', 'machine="q35"')
        virsh("define", "--validate", "/dev/stdin", text=text)
        taken = virsh("dumpxml", ElementTree.fromstring(text).findtext("name", ""))
        fixed = "disableHotplug: true" in (GOLDEN / f"{golden.name.partition('.')[0]}.yaml").read_text()
        assert free_ports(taken) == (0 if fixed else pci.SPARE_PORTS), golden.name
        # libvirt had to add no bridge or port of its own.
        assert taken.count("<controller type='pci'") == text.count('<controller type="pci"'), golden.name


def free_ports(xml: str) -> int:
    """Ports of a domain as libvirt writes it that no device is behind."""
    devices = ElementTree.fromstring(xml).find("devices")
    assert devices is not None
    taken = {int(place.get("bus", "0"), 16) for place in devices.findall("*/address[@type='pci']")}
    ports = devices.findall("controller[@model='pcie-root-port']")
    return sum(int(port.get("index", "0")) not in taken for port in ports)


def test_missing_virtual_function_is_reported(pod: Pod) -> None:
    function = {"PCIDEVICE_EXAMPLE_COM_FAST": "0000:fe:1f.7"}
    pod.start(KUBEVIRT_RESOURCE_NAME_fast="example.com/fast", **function)
    document = launcherlab.vmi(networks=[{"name": name, "multus": {"networkName": "a"}} for name in ("fast", "slow")])
    interfaces = [{"name": "fast", "sriov": {}}]
    document["spec"]["domain"]["devices"]["interfaces"] = interfaces
    code, words = refusal(pod, document)
    assert code == grpc.StatusCode.INTERNAL and "PCI" in words  # libvirt's, of this machine
    interfaces.append({"name": "slow", "sriov": {}})
    code, words = refusal(pod, document)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert words.startswith("spec.domain.devices.interfaces[1].sriov: network 'slow' has no device: KUBEVIRT_RESOURCE_")


def test_launcher_without_requests_keeps_running(pod: Pod) -> None:
    pod.start()
    assert pod.report().state == pb.DOMAIN_STATE_NONE
    assert pod.process is not None and pod.process.poll() is None
    assert launcherlab.children(pod.pid)
