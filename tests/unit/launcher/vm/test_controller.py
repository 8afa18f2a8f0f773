"""VmController with a hypervisor whose responses the test controls."""

import asyncio
import fcntl
import json
import os
import pathlib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from launcher.hypervisor.connection import DomainEvent, DomainFacts, HypervisorError
from launcher.hypervisor.domain_xml import DomainDescription
from launcher.paths import Paths
from launcher.vm.controller import VmController
from launcher.vm.errors import OperationRefused
from launcher.vm.state_files import StateFiles
from protos import launcher_pb2 as pb
from tests.unit.tasklab import assert_cancels_caller, others, settle

DOMAIN = DomainDescription("tcg", "pc-q35-7.2", False, (), 4, True)
STARTING = DomainFacts(3, 11, DOMAIN, 0)
"""virDomainState PAUSED, because it is starting up."""
RUNNING = DomainFacts(1, 1, DOMAIN, 0)
LIFECYCLE_STARTED, LIFECYCLE_STOPPED = DomainEvent("lifecycle", 2, 0), DomainEvent("lifecycle", 5, 0)


class Libvirt:
    """Fake hypervisor. Each poll waits in `looks` for its response."""

    def __init__(
        self, _: Paths, connected: Callable[[], None], __: object, happened: Callable[[DomainEvent], None]
    ) -> None:
        self.happened = happened
        self.looks: list[asyncio.Future[DomainFacts | None]] = []
        self.looked = asyncio.Condition()
        self.is_connected = True
        self.while_creating: list[DomainEvent] = []
        self.refusal: Exception | None = None
        self.resized: list[tuple[str, str, int]] = []

    async def resize_disk(self, domain: str, target: str, size: int) -> None:
        self.resized.append((domain, target, size))

    async def power_button(self, domain: str, agent: bool) -> None:
        """The guest ignores it."""

    async def agent_command(self, domain: str, command: str, seconds: int) -> None:
        await asyncio.Event().wait()

    async def create(self, xml: str, paused: bool) -> None:
        for event in self.while_creating:
            self.happened(event)
        if self.refusal is not None:
            raise self.refusal

    async def facts(self, domain: str) -> DomainFacts | None:
        poll: asyncio.Future[DomainFacts | None] = asyncio.get_running_loop().create_future()
        self.looks.append(poll)
        async with self.looked:
            self.looked.notify_all()
        return await poll

    async def asked(self, times: int) -> None:
        """Wait for that many started polls."""
        async with self.looked:
            await asyncio.wait_for(self.looked.wait_for(lambda: len(self.looks) >= times), 10)


class Builder:
    """Builds the same domain for any VMI. `claims`: its disks on claims."""

    def __init__(self) -> None:
        self.claims: list[dict[str, Any]] = []

    def discard(self) -> None:
        """No child to discard."""

    async def build(self, question: dict[str, Any]) -> dict[str, Any]:
        if "grow" in question:
            return {"sizes": {name: size * 2 for name, size in question["grow"].items()}}
        disks = [{"volume": "data", "target": "vda", "size": 1 << 30}]
        plan = {"domain": "web_vm", "xml": "<domain/>", "paused": False, "disks": disks, "dhcp_options": {}}
        return plan | {"claims": self.claims}


def request(uid: str = "uid-1", capacity: str = "1Gi") -> pb.SyncRequest:
    claim = pb.Claim(volume="data", name="data", capacity=capacity)
    return pb.SyncRequest(vmi=b"{}", vmi_uid=uid, claims=[claim])


@pytest.fixture
async def world(tmp_path: pathlib.Path) -> tuple[VmController, Libvirt]:
    paths = Paths(str(tmp_path))
    pathlib.Path(paths.run).mkdir(parents=True)
    machine = VmController(paths, StateFiles(paths), Builder(), Libvirt)  # type: ignore[arg-type]
    return machine, machine.hypervisor  # type: ignore[return-value]


@pytest.mark.parametrize("slow", ["the event's", "Sync's"])
async def test_outdated_poll_result_is_dropped(world: tuple[VmController, Libvirt], slow: str) -> None:
    machine, libvirt = world
    sync = asyncio.create_task(machine.sync(request()))
    if slow == "the event's":
        libvirt.while_creating = [LIFECYCLE_STARTED]
        # The event loop decides the order of the two; the last started poll returns RUNNING, and first.
        await libvirt.asked(2)
    else:
        await libvirt.asked(1)
        libvirt.happened(LIFECYCLE_STARTED)
        await libvirt.asked(2)
    first, second = libvirt.looks
    second.set_result(RUNNING)
    await until(machine, pb.DOMAIN_STATE_RUNNING)
    first.set_result(STARTING)
    assert (await asyncio.wait_for(sync, 10)).state == pb.DOMAIN_STATE_RUNNING
    assert (await reported(machine)).state == pb.DOMAIN_STATE_RUNNING


async def test_ordered_poll_results_are_applied(world: tuple[VmController, Libvirt]) -> None:
    machine, libvirt = world
    sync = asyncio.create_task(machine.sync(request()))
    await libvirt.asked(1)
    libvirt.looks[0].set_result(STARTING)
    assert (await asyncio.wait_for(sync, 10)).state == pb.DOMAIN_STATE_STARTING
    libvirt.happened(LIFECYCLE_STARTED)
    await libvirt.asked(2)
    libvirt.looks[1].set_result(RUNNING)
    await until(machine, pb.DOMAIN_STATE_RUNNING)


async def test_events_are_coalesced_into_one_poll(world: tuple[VmController, Libvirt]) -> None:
    machine, libvirt = world
    sync = asyncio.create_task(machine.sync(request()))
    await libvirt.asked(1)
    libvirt.looks[0].set_result(RUNNING)
    await asyncio.wait_for(sync, 10)
    for _ in range(1000):
        libvirt.happened(DomainEvent("device"))
    await libvirt.asked(2)
    for _ in range(1000):  # while that look lasts they are one more, which waits for it
        libvirt.happened(DomainEvent("device"))
    libvirt.looks[1].set_result(RUNNING)
    await libvirt.asked(3)
    libvirt.looks[2].set_result(RUNNING)
    poll = asyncio.create_task(machine.poll())
    await libvirt.asked(4)
    libvirt.looks[3].set_result(RUNNING)
    await asyncio.wait_for(poll, 10)
    assert len(libvirt.looks) == 4


async def test_poll_result_after_the_end_is_ignored(world: tuple[VmController, Libvirt]) -> None:
    machine, libvirt = world
    libvirt.while_creating = [LIFECYCLE_STARTED]
    sync = asyncio.create_task(machine.sync(request()))
    await libvirt.asked(2)
    libvirt.happened(LIFECYCLE_STOPPED)
    for poll in libvirt.looks:
        poll.set_result(RUNNING)
    assert (await asyncio.wait_for(sync, 10)).state == pb.DOMAIN_STATE_SHUTOFF
    reports = [report async for report in machine.watch()]
    assert reports[-1].state == pb.DOMAIN_STATE_SHUTOFF and machine.delivered.is_set()


async def test_end_event_before_start_returns_is_applied(world: tuple[VmController, Libvirt]) -> None:
    machine, libvirt = world
    libvirt.while_creating = [LIFECYCLE_STOPPED]
    assert (await asyncio.wait_for(machine.sync(request()), 10)).state == pb.DOMAIN_STATE_SHUTOFF
    with pytest.raises(OperationRefused, match="is not running"):
        machine.running()


async def test_sync_is_refused_while_stopping(world: tuple[VmController, Libvirt]) -> None:
    machine, libvirt = world
    machine.stop()
    with pytest.raises(OperationRefused, match="the pod is being terminated"):
        await machine.sync(request())
    assert not libvirt.looks


async def test_failure_of_a_sync_whose_caller_left_is_logged(
    world: tuple[VmController, Libvirt], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    machine, _ = world
    built = asyncio.Event()

    async def fail(_question: object) -> None:
        await built.wait()
        raise LookupError("odd")

    monkeypatch.setattr(machine._builder, "build", fail)
    await assert_cancels_caller(machine.sync(request()), built.set, steps=10)
    await machine.tasks.finish()
    line = json.loads(capfd.readouterr().err.splitlines()[-1])
    assert (line["task"], line["error"], line["level"]) == ("sync", "LookupError('odd')", "error")


async def test_close_leaves_no_task(world: tuple[VmController, Libvirt]) -> None:
    machine, libvirt = world
    sync = asyncio.create_task(machine.sync(request()))
    await libvirt.asked(1)
    libvirt.looks[0].set_result(replace(RUNNING, description=replace(DOMAIN, agent_connected=True)))
    await asyncio.wait_for(sync, 10)
    machine.stop()
    libvirt.happened(LIFECYCLE_STARTED)
    await settle()
    assert {task.get_name() for task in others()} >= {"shutdown", "poll", "guest-agent"}
    await machine.close()
    assert not others()


async def test_resized_disk_is_restored_by_the_next_server(
    world: tuple[VmController, Libvirt], tmp_path: pathlib.Path
) -> None:
    machine, libvirt = world
    sync = asyncio.create_task(machine.sync(request()))
    await libvirt.asked(1)
    libvirt.looks[0].set_result(RUNNING)
    report = await asyncio.wait_for(sync, 10)
    assert [(disk.size, disk.capacity) for disk in report.disks] == [(1 << 30, "1Gi")]
    await asyncio.wait_for(machine.sync(request(capacity="2Gi")), 10)
    assert libvirt.resized == [("web_vm", "vda", 2 << 30)]
    assert [(disk.size, disk.capacity) for disk in (await reported(machine)).disks] == [(2 << 30, "2Gi")]
    paths = Paths(str(tmp_path))
    again = VmController(paths, StateFiles(paths), Builder(), Libvirt)  # type: ignore[arg-type]
    again.restore()
    assert [(disk.size, disk.capacity) for disk in (await reported(again)).disks] == [(2 << 30, "2Gi")]


async def test_sync_of_another_vmi_is_refused(world: tuple[VmController, Libvirt]) -> None:
    machine, libvirt = world
    sync = asyncio.create_task(machine.sync(request()))
    await libvirt.asked(1)
    libvirt.looks[0].set_result(RUNNING)
    await asyncio.wait_for(sync, 10)
    with pytest.raises(OperationRefused, match="belongs to the VMI with UID uid-1") as caught:
        await machine.sync(request("uid-2"))
    assert caught.value.code == "FAILED_PRECONDITION"


async def test_request_without_uid_is_rejected(world: tuple[VmController, Libvirt]) -> None:
    with pytest.raises(OperationRefused, match="vmi_uid: required") as caught:
        await world[0].sync(pb.SyncRequest(vmi=b'{"metadata":{"uid":"uid-1"}}'))
    assert caught.value.code == "FAILED_PRECONDITION", "an older handler tries again"


async def test_start_that_fails_by_a_lock_names_volume_and_claim(tmp_path: pathlib.Path) -> None:
    paths, builder, disk = Paths(str(tmp_path)), Builder(), tmp_path / "disk.img"
    pathlib.Path(paths.run).mkdir(parents=True)
    disk.write_bytes(bytes(512))
    builder.claims = [{"volume": "data", "claim": "shared", "path": str(disk), "writes": True, "shares": False}]
    machine = VmController(paths, StateFiles(paths), builder, Libvirt)  # type: ignore[arg-type]
    machine.hypervisor.refusal = HypervisorError("internal error: process exited")  # type: ignore[attr-defined]
    with pytest.raises(HypervisorError, match=r"^internal error: process exited$"):
        await machine.sync(request())
    with disk.open("rb+") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 100, 200, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        with pytest.raises(HypervisorError, match=r"^volume data: claim shared is in use by another virtual machine"):
            await machine.sync(request())


async def reported(machine: VmController) -> pb.Report:
    """The first report of a new watcher."""
    async for report in machine.watch():
        return report
    raise AssertionError("nothing was reported")


async def until(machine: VmController, state: pb.DomainState.ValueType) -> None:
    """Wait for a reported state."""

    async def wait() -> None:
        async for report in machine.watch():
            if report.state == state:
                return

    await asyncio.wait_for(wait(), 10)
