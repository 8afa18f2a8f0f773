"""Subresources of a running VMI and guest agent information, through the gateway to a node over mTLS."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.http.status import MESSAGE_LIMIT, StatusError
from gateway.subresources.options import FreezeUnfreezeTimeout
from gateway.subresources.verbs.vmi import freeze_seconds
from tests.fakes.apiserver import Json
from tests.unit.gateway.lab import NODE, World, handler_pod, serve_node, vm, vmi, world
from tests.waiting import until

INSTANCE = "virtualmachineinstances/web"
VERBS = ["pause", "unpause", "freeze", "unfreeze", "reset", "softreboot"]
CALLS = dict(zip(VERBS, ["Pause", "Unpause", "Freeze", "Unfreeze", "Reset", "SoftReboot"], strict=True))
AGENT = ["guestosinfo", "userlist", "filesystemlist"]


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def given(gate: World, *conditions: str, phase: str = "Running", spec: Json | None = None, **more: Any) -> None:
    gate.api.put("virtualmachineinstances", vmi(phase, conditions=conditions, spec=spec, **more))


@pytest.mark.parametrize("verb", VERBS)
async def test_verb_calls_node_once(gate: World, verb: str) -> None:
    await given(gate, *(["Paused"] if verb == "unpause" else []))
    assert await gate.ask("PUT", f"{INSTANCE}/{verb}") == (200, b"")
    assert gate.node.called == {CALLS[verb]: 1}


@pytest.mark.parametrize(
    ("verb", "conditions", "phase", "spec", "code", "said"),
    [
        ("pause", ["Paused"], "Running", {}, 409, "VMI is already paused"),
        ("pause", [], "Scheduled", {}, 409, "VM is not running"),
        (
            "pause",
            [],
            "Running",
            {"livenessProbe": {"tcpSocket": {"port": 22}}},
            403,
            "Pausing VMIs with LivenessProbe is currently not supported",
        ),
        ("unpause", [], "Running", {}, 409, "VMI is not paused"),
        ("unpause", ["Paused"], "Failed", {}, 409, "VMI is not running"),
        ("freeze", [], "Succeeded", {}, 409, "VM is not running"),
        ("unfreeze", [], "Succeeded", {}, 409, "VMI is not running"),
        ("reset", [], "Scheduled", {}, 409, "Failed to reset non-running VMI with phase Scheduled"),
        ("softreboot", ["Paused"], "Running", {}, 409, "VMI is paused"),
        (
            "softreboot",
            [],
            "Running",
            {"domain": {"devices": {}, "features": {"acpi": {"enabled": False}}}},
            409,
            "VMI neither have the agent connected nor the ACPI feature enabled",
        ),
    ],
)
async def test_verb_conflicts(
    gate: World, verb: str, conditions: list[str], phase: str, spec: Json, code: int, said: str
) -> None:
    await given(gate, *conditions, phase=phase, spec=spec)
    found, body = await gate.ask("PUT", f"{INSTANCE}/{verb}")
    assert (found, body["message"].endswith(said)) == (code, True), body
    assert gate.node.called == {}


@pytest.mark.parametrize("path", [f"{INSTANCE}/{verb}" for verb in VERBS])
async def test_missing_vmi_returns_404(gate: World, path: str) -> None:
    code, body = await gate.ask("PUT", path)
    assert (code, body["message"]) == (404, 'virtualmachineinstance.kubevirt.io "web" not found')


@pytest.mark.parametrize("verb", ["pause", "unpause"])
async def test_dry_run_does_not_call_node(gate: World, verb: str) -> None:
    await given(gate, *(["Paused"] if verb == "unpause" else []))
    assert (await gate.ask("PUT", f"{INSTANCE}/{verb}", body={"dryRun": ["All"]}))[0] == 200
    assert gate.node.called == {}


async def test_unpause_during_snapshot_returns_409(gate: World) -> None:
    await given(gate, "Paused")
    gate.api.put("virtualmachines", vm("Manual", snapshotInProgress="one"))
    code, body = await gate.ask("PUT", f"{INSTANCE}/unpause")
    assert (code, body["message"].endswith("VM snapshot is in progress")) == (409, True)


# ---- freeze ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({}, 300),
        (None, 300),
        ({"unfreezeTimeout": "5m"}, 300),
        ({"unfreezeTimeout": "1m30.2s"}, 91),
        ({"unfreezeTimeout": "0s"}, 300),
        ({"unfreezeTimeout": None}, 300),
        ({"unfreezeTimeout": 2_000_000_000}, 2),
    ],
)
async def test_freeze_timeout_is_sent_to_node(gate: World, body: Any, seconds: int) -> None:
    await given(gate)
    assert (await gate.ask("PUT", f"{INSTANCE}/freeze", body=body))[0] == 200
    assert gate.node.frozen_for == seconds


@pytest.mark.parametrize("value", ["nonsense", "-5s", "2h", True, [], {}, -1, 1 << 70])
async def test_invalid_freeze_timeout_returns_400(gate: World, value: Any) -> None:
    await given(gate)
    code, _ = await gate.ask("PUT", f"{INSTANCE}/freeze", body={"unfreezeTimeout": value})
    assert code == 400
    assert gate.node.called == {}


def test_the_longest_freeze_is_an_hour() -> None:
    assert freeze_seconds(FreezeUnfreezeTimeout(unfreezeTimeout="1h")) == 3600
    with pytest.raises(StatusError):
        freeze_seconds(FreezeUnfreezeTimeout(unfreezeTimeout="1h1s"))


# ---- guest agent ----------------------------------------------------------------------------------------------------


async def test_guest_agent_info_has_kubevirt_format(gate: World) -> None:
    await given(gate, "AgentConnected", fsFreezeStatus="frozen")
    code, info = await gate.ask("GET", f"{INSTANCE}/guestosinfo")
    user = {"userName": "alice", "loginTime": 1.5}
    system = {
        "diskName": "vda1",
        "mountPoint": "/",
        "fileSystemType": "ext4",
        "usedBytes": 5,
        "totalBytes": 1 << 40,
        "disk": [{"busType": "virtio", "serial": "abc"}],
    }
    assert (code, info) == (
        200,
        {
            "kind": "VirtualMachineInstanceGuestAgentInfo",
            "apiVersion": "kubevirt.io/v1",
            "guestAgentVersion": "8.2",
            "hostname": "web",
            "timezone": "UTC, 0",
            "os": {"name": "Tiny", "id": "tiny"},
            "userList": [user],
            "fsInfo": {"disks": [system]},
            "fsFreezeStatus": "frozen",
        },
    )
    _, users = await gate.ask("GET", f"{INSTANCE}/userlist")
    assert (users["kind"], users["items"]) == ("VirtualMachineInstanceGuestOSUserList", [user])
    _, systems = await gate.ask("GET", f"{INSTANCE}/filesystemlist")
    assert (systems["kind"], systems["items"]) == ("VirtualMachineInstanceFileSystemList", [system])


@pytest.mark.parametrize("what", AGENT)
async def test_guest_info_without_agent_returns_409(gate: World, what: str) -> None:
    await given(gate)
    code, body = await gate.ask("GET", f"{INSTANCE}/{what}")
    assert (code, body["message"].endswith("VMI does not have guest agent connected")) == (409, True)


# ---- connections to nodes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (grpc.StatusCode.NOT_FOUND, 404, "NotFound"),
        (grpc.StatusCode.FAILED_PRECONDITION, 409, "Conflict"),
        (grpc.StatusCode.INVALID_ARGUMENT, 400, "BadRequest"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "TooManyRequests"),
        (grpc.StatusCode.UNAVAILABLE, 503, "ServiceUnavailable"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "Timeout"),
        (grpc.StatusCode.UNIMPLEMENTED, 501, "NotImplemented"),
        (grpc.StatusCode.INTERNAL, 500, "InternalError"),
    ],
)
async def test_grpc_errors_map_to_http_status(gate: World, status: grpc.StatusCode, code: int, reason: str) -> None:
    await given(gate)
    gate.node.fails = (status, "because\x1b[2Jof this" + "x" * 5000)
    found, body = await gate.ask("PUT", f"{INSTANCE}/reset")
    assert (found, body["reason"]) == (code, reason)
    assert "of this" in body["message"]
    assert "\x1b" not in body["message"]
    assert len(body["message"]) <= MESSAGE_LIMIT


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_temporary_errors_have_retry_after(gate: World, status: grpc.StatusCode) -> None:
    await given(gate)
    gate.node.fails = (status, "not now")
    url = "/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances/web/reset"
    async with gate.proxy.put(url, headers={"X-Remote-User": "alice"}) as response:
        assert int(response.headers["Retry-After"]) > 0
        assert (await response.json())["details"]["retryAfterSeconds"] > 0


async def test_node_without_handler_returns_503(gate: World) -> None:
    await given(gate, nodeName="node-2")
    code, body = await gate.ask("PUT", f"{INSTANCE}/reset")
    assert (code, "node-2" in body["message"]) == (503, True)


async def test_vmi_without_node_returns_409(gate: World) -> None:
    await given(gate, nodeName="")
    code, body = await gate.ask("PUT", f"{INSTANCE}/reset")
    assert (code, body["message"].endswith("VMI is not running")) == (409, True)


async def test_handler_of_another_node_is_rejected(gate: World) -> None:
    """The handler must present its node's certificate: node-1's handler is rejected for node-2."""
    gate.api.put("pods", handler_pod("node-2", name="virt-handler-2"))
    await until(lambda: gate.services.nodes._pods.by("node", "node-2"))
    await given(gate, nodeName="node-2")
    code, _ = await gate.ask("PUT", f"{INSTANCE}/reset")
    assert code == 503
    assert gate.node.called == {}


async def test_handler_with_foreign_ca_is_rejected(gate: World) -> None:
    stranger, port = await serve_node(gate.node, gate.pki.node(NODE, by=gate.pki.users))
    gate.services.nodes._port = port
    await given(gate)
    assert (await gate.ask("PUT", f"{INSTANCE}/reset"))[0] == 503
    assert gate.node.called == {}
    await stranger.stop(None)


async def test_a_renewed_certificate_is_used_for_the_next_call(gate: World) -> None:
    await given(gate)
    assert (await gate.ask("PUT", f"{INSTANCE}/reset"))[0] == 200
    (before,) = gate.services.nodes._links.values()
    assert gate.certificates.client is not None
    gate.certificates.client = gate.certificates.client._replace(roots=gate.certificates.client.roots + b"\n")
    assert (await gate.ask("PUT", f"{INSTANCE}/reset"))[0] == 200
    (after,) = gate.services.nodes._links.values()
    assert after is not before
    assert before.retired


async def test_restarted_handler_is_found(gate: World) -> None:
    await given(gate)
    assert (await gate.ask("PUT", f"{INSTANCE}/reset"))[0] == 200
    gate.api.remove("pods", "virt-handler-1", "hyperlet")
    await until(lambda: not gate.services.nodes._pods.by("node", NODE))
    assert (await gate.ask("PUT", f"{INSTANCE}/reset"))[0] == 503
    server, port = await serve_node(gate.node, gate.pki.node(NODE))
    gate.services.nodes._port = port
    gate.api.put("pods", handler_pod(name="virt-handler-new"))
    await until(lambda: gate.services.nodes._pods.by("node", NODE))
    assert (await gate.ask("PUT", f"{INSTANCE}/reset"))[0] == 200
    assert gate.node.called["Reset"] == 2
    await server.stop(None)
