"""Users and file systems from the guest agent; freezes always end."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.tasks import BackgroundTasks
from launcher.guest import operations
from launcher.guest.operations import GuestOperations, filesystems, users
from launcher.hypervisor.connection import HypervisorError
from launcher.log import task_failed
from launcher.vm.errors import OperationRefused
from protos import launcher_pb2 as pb
from protos import limits

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["user", "domain", "login-time", "name", "mountpoint", "used-bytes", "disk", "serial"]),
            inner,
        )
    ),
    max_leaves=20,
)


def test_users() -> None:
    reply = users([{"user": "alice", "domain": "CORP", "login-time": 1700000000.5}, {"user": "bob"}])
    assert [(user.name, user.domain, user.login_time) for user in reply.users] == [
        ("alice", "CORP", 1700000000.5),
        ("bob", "", 0.0),
    ]


def test_filesystems() -> None:
    disk = {"serial": "S1", "bus-type": "virtio", "bus": 0}
    reply = filesystems(
        [{"name": "vda1", "mountpoint": "/", "type": "ext4", "used-bytes": 5, "total-bytes": 9, "disk": [disk]}]
    )
    (found,) = reply.filesystems
    assert (found.name, found.mount_point, found.type, found.used_bytes, found.total_bytes) == (
        "vda1", "/", "ext4", 5, 9,
    )  # fmt: skip
    assert [(d.serial, d.bus) for d in found.disks] == [("S1", "virtio")]


def test_long_lists_are_truncated() -> None:
    assert len(users([{"user": "u" * 1000}] * 5000).users) == 1000
    assert users([{"user": "u" * 1000}] * 5000).ByteSize() <= limits.REPLY_BYTES
    disks = [{"serial": "s" * 500, "bus-type": "b" * 500}] * 100
    reply = filesystems([{"name": "n" * 500, "disk": disks}] * 5000)
    assert 0 < len(reply.filesystems) < 1000 and reply.ByteSize() <= limits.REPLY_BYTES
    assert len(reply.filesystems[0].disks) == 64


@given(JSON)
def test_arbitrary_agent_responses_are_accepted(answer: Any) -> None:
    for reply in (users(answer), filesystems(answer)):
        assert reply.ByteSize() <= limits.REPLY_BYTES


# -- freeze


class FakeAgent:
    hushed = False


class FakeMachine:
    """Fake VmController and guest agent: `frozen` is the guest's state, `failing` the failing commands."""

    def __init__(self) -> None:
        self.agent, self.hypervisor = FakeAgent(), self
        self.saved: dict[str, float] = {}
        self.frozen, self.failing = False, set[str]()
        self.forgotten = asyncio.Event()
        self.failed = asyncio.Event()
        self.report = pb.Report(agent_connected=True, state=pb.DOMAIN_STATE_RUNNING)
        self.rebooted: list[bool] = []
        self.tasks = BackgroundTasks(task_failed)

    def running(self) -> str:
        return "domain"

    async def poll(self) -> pb.Report:
        return self.report

    def remember(self, name: str, value: float) -> None:
        self.saved[name] = value
        if not value:
            self.forgotten.set()

    def recall(self, name: str) -> float:
        return self.saved.get(name, 0.0)

    async def reboot(self, domain: str, agent: bool) -> None:
        if agent and "reboot" in self.failing:
            raise HypervisorError("the agent does not answer")
        self.rebooted.append(agent)

    async def agent_command(self, domain: str, command: str, seconds: int) -> Any:
        if command in self.failing:
            self.failed.set()
            raise HypervisorError(f"{command} failed")
        if command == "guest-fsfreeze-status":
            return "frozen" if self.frozen else "thawed"
        if command == "guest-fsfreeze-freeze":
            assert not self.frozen and self.saved["thaw_at"], "nothing would thaw it"
            self.frozen = True
        if command == "guest-fsfreeze-thaw":
            self.frozen = False
        return 0


def made(machine: FakeMachine) -> GuestOperations:
    return GuestOperations(machine)  # type: ignore[arg-type]


async def thawed(machine: FakeMachine) -> None:
    await asyncio.wait_for(machine.forgotten.wait(), 20)
    assert not machine.frozen and not machine.agent.hushed


async def test_freeze_and_unfreeze() -> None:
    machine = FakeMachine()
    verb = made(machine)
    await verb.freeze(0)
    first = machine.saved["thaw_at"]
    assert machine.frozen and machine.agent.hushed and first
    await verb.freeze(3000)  # frozen already: only the time is new
    assert machine.saved["thaw_at"] > first + 2000
    await verb.unfreeze()
    await thawed(machine)


async def test_automatic_thaw_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_THAW_PAUSES", (0.01,))
    machine = FakeMachine()
    machine.failing.add("guest-fsfreeze-thaw")
    monkeypatch.setattr(operations, "LONGEST_FREEZE", 0.01)
    await made(machine).freeze(1)
    await asyncio.wait_for(machine.failed.wait(), 20)
    assert machine.frozen
    machine.failing.clear()
    await thawed(machine)


async def test_restarted_server_thaws(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    machine.frozen, machine.saved = True, {"thaw_at": 1.0}
    made(machine).resume()
    await thawed(machine)


async def test_freeze_timeout_thaws_at_once() -> None:
    machine = FakeMachine()
    machine.failing.add("guest-fsfreeze-freeze")
    machine.frozen = False
    with pytest.raises(HypervisorError):
        await made(machine).freeze(600)
    await thawed(machine)


async def test_operations_require_the_agent() -> None:
    machine = FakeMachine()
    machine.report.agent_connected = False
    verb = made(machine)
    for call in (verb.freeze(1), verb.unfreeze(), verb.users(), verb.filesystems()):
        with pytest.raises(OperationRefused, match="no guest agent is connected") as caught:
            await call
        assert caught.value.code == "FAILED_PRECONDITION"
    assert "thaw_at" not in machine.saved


@pytest.mark.parametrize(
    ("connected", "failing", "by_agent"), [(True, set(), True), (True, {"reboot"}, False), (False, set(), False)]
)
async def test_reboot_by_agent_or_acpi(connected: bool, failing: set[str], by_agent: bool) -> None:
    machine = FakeMachine()
    machine.report.agent_connected, machine.failing = connected, failing
    await made(machine).soft_reboot()
    assert machine.rebooted == [by_agent]


async def test_reboot_of_paused_guest_is_refused() -> None:
    machine = FakeMachine()
    machine.report.state = pb.DOMAIN_STATE_PAUSED
    with pytest.raises(OperationRefused, match="paused"):
        await made(machine).soft_reboot()
