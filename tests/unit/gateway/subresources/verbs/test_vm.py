"""start, stop and restart by run strategy through the whole gateway: patches and conflicts."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.apiserver import Json, Refusal
from tests.unit.gateway.lab import VMI_UID, World, vm, vmi, world

START = {"action": "Start"}
STOP = {"action": "Stop", "uid": VMI_UID}


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def given(gate: World, machine: Json, instance: Json | None = None) -> None:
    gate.api.put("virtualmachines", machine)
    if instance is not None:
        gate.api.put("virtualmachineinstances", instance)


def now(gate: World, plural: str = "virtualmachines") -> Json:
    found = gate.api.find(plural, "web")
    assert found is not None
    return found


def requests(gate: World) -> Any:
    return now(gate)["status"].get("stateChangeRequests")


def words(body: Json) -> str:
    message: str = body["message"]
    return message.split('"web": ', 1)[-1]


# ---- start ----------------------------------------------------------------------------------------------------------


async def test_start_of_halted_vm_sets_run_strategy(gate: World) -> None:
    await given(gate, vm("Halted"))
    assert await gate.ask("PUT", "virtualmachines/web/start") == (202, b"")
    assert now(gate)["spec"]["runStrategy"] == "Always"
    assert requests(gate) is None


async def test_start_with_running_false_sets_running_true(gate: World) -> None:
    machine = vm()
    del machine["spec"]["runStrategy"]
    machine["spec"]["running"] = False
    await given(gate, machine)
    assert (await gate.ask("PUT", "virtualmachines/web/start", body={}))[0] == 202
    assert now(gate)["spec"]["running"] is True
    assert "runStrategy" not in now(gate)["spec"]


async def test_paused_start_of_halted_vm_writes_request_and_spec(gate: World) -> None:
    await given(gate, vm("Halted", stateChangeRequests=[START]))
    assert (await gate.ask("PUT", "virtualmachines/web/start", body={"paused": True}))[0] == 202
    assert now(gate)["spec"]["runStrategy"] == "Always"
    assert requests(gate) == [{"action": "Start", "data": {"paused": "true"}}]
    assert "startStrategy" not in now(gate)["spec"]["template"]["spec"]


@pytest.mark.parametrize("strategy", ["Manual", "RerunOnFailure"])
async def test_start_of_manual_vm_writes_request(gate: World, strategy: str) -> None:
    await given(gate, vm(strategy, startFailure={"consecutiveFailCount": 3}))
    assert (await gate.ask("PUT", "virtualmachines/web/start"))[0] == 202
    assert requests(gate) == [START]
    assert "startFailure" not in now(gate)["status"]


@pytest.mark.parametrize(("strategy", "phase"), [("Manual", "Failed"), ("Manual", "Succeeded")])
async def test_start_replaces_finished_vmi(gate: World, strategy: str, phase: str) -> None:
    await given(gate, vm(strategy), vmi(phase))
    assert (await gate.ask("PUT", "virtualmachines/web/start", body={"paused": True}))[0] == 202
    assert requests(gate) == [STOP, {"action": "Start", "data": {"paused": "true"}}]


@pytest.mark.parametrize(
    ("machine", "instance", "said"),
    [
        (vm("Manual"), vmi("Running"), "VM is already running"),
        (vm("Halted"), vmi("Scheduling"), "VM is already running"),
        (vm("Always"), None, "Always does not support manual start requests"),
        (vm("Once"), None, "Once does not support manual start requests"),
        (vm("RerunOnFailure"), vmi("Failed"), "RerunOnFailure does not support starting VM from failed state"),
        (
            vm("Manual", stateChangeRequests=[START]),
            None,
            "unable to complete request: stop/start already underway",
        ),
    ],
)
async def test_start_conflicts(gate: World, machine: Json, instance: Json | None, said: str) -> None:
    await given(gate, machine, instance)
    version = now(gate)["metadata"]["resourceVersion"]
    code, body = await gate.ask("PUT", "virtualmachines/web/start")
    assert (code, body["reason"]) == (409, "Conflict")
    assert body["message"] == f'Operation cannot be fulfilled on virtualmachine.kubevirt.io "web": {said}'
    assert body["details"] == {"name": "web", "group": "kubevirt.io", "kind": "virtualmachine"}
    assert now(gate)["metadata"]["resourceVersion"] == version


async def test_vmi_with_other_owner_is_ignored(gate: World) -> None:
    other = vmi("Running")
    other["metadata"]["ownerReferences"] = []
    await given(gate, vm("Manual"), other)
    code, body = await gate.ask("PUT", "virtualmachines/web/stop", body={"gracePeriod": 0})
    assert (code, words(body)) == (409, "VM is not running")
    assert now(gate, "virtualmachineinstances")["spec"]["terminationGracePeriodSeconds"] == 30


async def test_missing_vm_returns_404(gate: World) -> None:
    code, body = await gate.ask("PUT", "virtualmachines/web/start")
    assert (code, body["reason"]) == (404, "NotFound")
    assert body["message"] == 'virtualmachine.kubevirt.io "web" not found'


# ---- stop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["Always", "Once"])
async def test_stop_of_running_vm_sets_halted(gate: World, strategy: str) -> None:
    await given(gate, vm(strategy), vmi())
    assert (await gate.ask("PUT", "virtualmachines/web/stop"))[0] == 202
    assert now(gate)["spec"]["runStrategy"] == "Halted"
    assert now(gate, "virtualmachineinstances")["spec"]["terminationGracePeriodSeconds"] == 30


@pytest.mark.parametrize("strategy", ["Manual", "RerunOnFailure"])
async def test_stop_replaces_pending_requests(gate: World, strategy: str) -> None:
    await given(gate, vm(strategy, stateChangeRequests=[START]), vmi())
    assert (await gate.ask("PUT", "virtualmachines/web/stop", body={"gracePeriod": 0}))[0] == 202
    assert requests(gate) == [STOP]
    assert now(gate, "virtualmachineinstances")["spec"]["terminationGracePeriodSeconds"] == 0


async def test_stop_of_stopping_vm_requires_shorter_grace_period(gate: World) -> None:
    await given(gate, vm("Halted"), vmi())
    for body in ({}, {"gracePeriod": 30}, {"gracePeriod": 60}):
        code, told = await gate.ask("PUT", "virtualmachines/web/stop", body=body)
        assert (code, words(told)) == (409, "Halted only supports manual stop requests with a shorter graceperiod")
        assert now(gate, "virtualmachineinstances")["spec"]["terminationGracePeriodSeconds"] == 30
    assert (await gate.ask("PUT", "virtualmachines/web/stop", body={"gracePeriod": 1}))[0] == 202
    assert now(gate, "virtualmachineinstances")["spec"]["terminationGracePeriodSeconds"] == 1


@pytest.mark.parametrize("strategy", ["Manual", "RerunOnFailure", "Halted"])
@pytest.mark.parametrize("instance", [None, vmi("Succeeded")])
async def test_stop_without_vmi_returns_409(gate: World, strategy: str, instance: Json | None) -> None:
    await given(gate, vm(strategy), instance)
    code, body = await gate.ask("PUT", "virtualmachines/web/stop")
    assert (code, words(body)) == (409, "VM is not running")


# ---- restart --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["Always", "Manual", "RerunOnFailure"])
async def test_restart_writes_stop_and_start_requests(gate: World, strategy: str) -> None:
    await given(gate, vm(strategy), vmi())
    assert (await gate.ask("PUT", "virtualmachines/web/restart"))[0] == 202
    assert requests(gate) == [STOP, START]
    assert now(gate, "virtualmachineinstances")["spec"]["terminationGracePeriodSeconds"] == 30


async def test_forced_restart_sets_zero_grace_period(gate: World) -> None:
    await given(gate, vm("Always"), vmi())
    assert (await gate.ask("PUT", "virtualmachines/web/restart", body={"gracePeriodSeconds": 0}))[0] == 202
    assert requests(gate) == [STOP, START]
    assert now(gate, "virtualmachineinstances")["spec"]["terminationGracePeriodSeconds"] == 0


@pytest.mark.parametrize(
    ("machine", "instance", "body", "code", "said"),
    [
        (vm("Halted"), vmi(), {}, 409, "RunStategy Halted does not support manual restart requests"),
        (vm("Once"), vmi(), {}, 409, "RunStategy Once does not support manual restart requests"),
        (vm("Manual"), None, {}, 409, "VM is not running: Halted"),
        (
            vm("Manual", stateChangeRequests=[STOP, START]),
            vmi(),
            {},
            409,
            "unable to complete request: stop/start already underway",
        ),
        (vm(), vmi(), {"gracePeriodSeconds": 5}, 400, "For force restart, only gracePeriod=0 is supported for now"),
        (vm(), vmi(), {"gracePeriodSeconds": -1}, 400, "gracePeriod has to be greater or equal to 0"),
    ],
)
async def test_restart_conflicts(
    gate: World, machine: Json, instance: Json | None, body: Json, code: int, said: str
) -> None:
    await given(gate, machine, instance)
    found, told = await gate.ask("PUT", "virtualmachines/web/restart", body=body)
    assert (found, words(told)) == (code, said)


# ---- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "machine", "instance", "body"),
    [
        ("start", vm("Halted"), None, {"paused": True}),
        ("start", vm("Manual"), None, {}),
        ("stop", vm("Always"), vmi(), {"gracePeriod": 0}),
        ("restart", vm("Always"), vmi(), {"gracePeriodSeconds": 0}),
    ],
)
async def test_a_dry_run_changes_nothing(
    gate: World, verb: str, machine: Json, instance: Json | None, body: Json
) -> None:
    await given(gate, machine, instance)
    version = gate.api.version
    assert (await gate.ask("PUT", f"virtualmachines/web/{verb}", body={**body, "dryRun": ["All"]}))[0] == 202
    assert gate.api.version == version


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "migrate"])
@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'"x"', b"\xff", {"dryRun": ["Some"]}, {"dryRun": "All"}, b"1", {"dryRun": [""]}]
)
async def test_invalid_bodies_return_400(gate: World, verb: str, body: Any) -> None:
    await given(gate, vm("Manual"), vmi())
    code, told = await gate.ask("PUT", f"virtualmachines/web/{verb}", body=body)
    assert (code, told["reason"]) == (400, "BadRequest")


@pytest.mark.parametrize("grace", [-1, 1 << 40, "1", 1.5])
async def test_invalid_grace_period_returns_400(gate: World, grace: Any) -> None:
    await given(gate, vm("Always"), vmi())
    code, _ = await gate.ask("PUT", "virtualmachines/web/stop", body={"gracePeriod": grace})
    assert code == 400
    assert now(gate)["spec"]["runStrategy"] == "Always"


async def test_oversized_body_returns_413(gate: World) -> None:
    await given(gate, vm("Manual"), vmi())
    code, told = await gate.ask("PUT", "virtualmachines/web/start", body=b" " * (1 << 20))
    assert (code, told["reason"]) == (413, "RequestEntityTooLarge")


async def test_conflicting_write_is_retried(gate: World) -> None:
    await given(gate, vm("Manual"))
    once = iter([Refusal(409, "Conflict", "the object has been modified")])
    gate.api.refuse = lambda verb, plural, body: next(once, None) if verb == "patch" else None
    assert (await gate.ask("PUT", "virtualmachines/web/start"))[0] == 202
    assert requests(gate) == [START]


async def test_repeated_conflicts_return_409(gate: World) -> None:
    await given(gate, vm("Manual"))
    gate.api.refuse = lambda verb, plural, body: Refusal(409, "Conflict", "again") if verb == "patch" else None
    assert (await gate.ask("PUT", "virtualmachines/web/start"))[0] == 409


async def test_admission_refusal_message_is_returned(gate: World) -> None:
    await given(gate, vm("Manual"))
    gate.api.refuse = lambda verb, plural, body: Refusal(403, "Forbidden", "quota says no") if verb == "patch" else None
    code, body = await gate.ask("PUT", "virtualmachines/web/start")
    assert (code, body["message"]) == (403, "quota says no")


async def test_migrate_returns_501(gate: World) -> None:
    await given(gate, vm("Manual"), vmi())
    code, body = await gate.ask("PUT", "virtualmachines/web/migrate", body={})
    assert code == 501
    assert "migration" in body["message"]


@pytest.mark.parametrize(
    "path",
    [
        "virtualmachines/web/addvolume",
        "virtualmachines/web/removevolume",
        "virtualmachines/web/memorydump",
        "virtualmachines/web/removememorydump",
        "virtualmachineinstances/web/addvolume",
        "virtualmachineinstances/web/removevolume",
    ],
)
async def test_unimplemented_subresources_return_501(gate: World, path: str) -> None:
    await given(gate, vm("Manual"), vmi())
    code, body = await gate.ask("PUT", path, body={})
    assert (code, body["reason"]) == (501, "NotImplemented")
    assert body["message"].endswith("not implemented yet")


# ---- expansion ------------------------------------------------------------------------------------------------------


async def test_expand_without_instancetype_returns_vm_unchanged(gate: World) -> None:
    await given(gate, vm("Manual"))
    code, body = await gate.ask("GET", "virtualmachines/web/expand-spec")
    assert code == 200
    assert (body["kind"], body["spec"]) == ("VirtualMachine", vm("Manual")["spec"])
    assert (await gate.ask("PUT", "expand-vm-spec", body=vm("Halted")))[1]["spec"]["runStrategy"] == "Halted"


async def test_expand_with_instancetype_returns_501(gate: World) -> None:
    await given(gate, vm("Manual", spec={"instancetype": {"name": "small"}}))
    assert (await gate.ask("GET", "virtualmachines/web/expand-spec"))[0] == 501


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[" * 100000, {"kind": "Pod"}, vm(spec={"typo": 1}), {**vm(), "metadata": {"namespace": "other"}}],
)
async def test_expand_of_invalid_vm_returns_400(gate: World, body: Any) -> None:
    code, told = await gate.ask("PUT", "expand-vm-spec", body=body)
    assert (code, told["reason"]) == (400, "BadRequest")
