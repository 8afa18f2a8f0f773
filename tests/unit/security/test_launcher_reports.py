"""What an escaped guest, speaking as its launcher, can make the handler write."""

from datetime import UTC, datetime

import msgspec

from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from handler.launchers import reports
from handler.launchers.reports import LauncherState, ReportedDisk, guest_interface
from handler.pod_network.setup import PodNetworkState
from handler.vmi import status as vmi_status
from protos import launcher_pb2 as pb
from tests.fakes import handler_objects
from tests.fakes.patches import merge

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
POD = handler_objects.pod("pod-uid")


def told(document: dict, state: LauncherState) -> dict:
    """The VMI after the handler has written what a launcher said."""
    vmi = msgspec.convert(document, VirtualMachineInstance)
    patch = vmi_status.running(
        vmi, vmi_status.StatusFacts(state, msgspec.convert(POD, Pod), PodNetworkState(), ""), NOW
    )
    return document if patch is None else merge(document, {"status": patch.body["status"]})


def largest(round: int) -> LauncherState:
    """As much as a report may hold, other names every time."""
    report = pb.Report(state=pb.DOMAIN_STATE_RUNNING, reason="Booted", message="m" * 5000, machine="m" * 64)
    report.agent_connected = True
    for number in range(5000):
        report.disks.add(volume=f"made-up-{round}-{number}", target=f"vd{number % 10}", size=2**63)
        report.guest.interfaces.add(
            name=f"{round}-{number}" + "n" * 500,
            mac=f"52:54:00:00:{round % 256:02x}:{number % 256:02x}",
            addresses=[f"10.{round % 256}.{number % 256}.{last}/24" for last in range(60)],
        )
    for field in ("name", "id", "version", "version_id", "pretty_name", "kernel_release", "kernel_version", "machine"):
        setattr(report.guest.os, field, f"{round}" * 5000)
    return reports.check(report)


def test_the_object_does_not_grow_however_often_a_launcher_lies() -> None:
    document = handler_objects.vmi(phase="Running")
    document["metadata"]["resourceVersion"] = "1"
    sizes = []
    for round in range(10, 30):
        document = told(document, largest(round))
        sizes.append(len(msgspec.json.encode(document)))
    assert max(sizes) - min(sizes) < 100
    assert max(sizes) < 64 << 10  # an object that nobody can write any more has 1.5 MiB


def test_disks_that_the_machine_does_not_have_are_not_written_down() -> None:
    document = handler_objects.vmi(phase="Running", volumes=[{"name": "root", "containerDisk": {"image": "i"}}])
    document["metadata"]["resourceVersion"] = "1"
    state = LauncherState(
        state=pb.DOMAIN_STATE_RUNNING, disks=(ReportedDisk("root", "vda", 1), ReportedDisk("made-up", "vdb", 2))
    )
    assert [entry["name"] for entry in told(document, state)["status"]["volumeStatus"]] == ["root"]


def test_a_launcher_cannot_name_the_object_that_is_written() -> None:
    """Whatever a report says, a patch holds status and the version it was made from, nothing else."""
    document = handler_objects.vmi(phase="Scheduled")
    document["metadata"]["resourceVersion"] = "7"
    vmi = msgspec.convert(document, VirtualMachineInstance)
    lying = LauncherState(
        state=pb.DOMAIN_STATE_RUNNING,
        vmi_uid="victim",
        message='"}},"metadata":{"name":"victim',
        interfaces=(guest_interface("eth0\n", "", ("10.0.0.1",)),),
    )
    patch = vmi_status.running(
        vmi, vmi_status.StatusFacts(lying, msgspec.convert(POD, Pod), PodNetworkState(), ""), NOW
    )
    assert patch is not None
    assert set(patch.body) == {"metadata", "status"} and patch.body["metadata"] == {"resourceVersion": "7"}
    assert not {"nodeName", "activePods", "runtimeUser"} & set(patch.body["status"])
