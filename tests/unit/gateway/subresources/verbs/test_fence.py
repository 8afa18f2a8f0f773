"""fence: accepted only for a waiting VMI, and for the pods that it waits for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api import names
from api.kubevirt.vmi import VirtualMachineInstance
from gateway.subresources.verbs.fence import refusal
from tests.fakes.apiserver import Json
from tests.unit.gateway.lab import NODE, POD_UID, World, vmi, world

FENCE = "virtualmachineinstances/web/fence"


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def waiting(kind: str = "Ready", reason: str = names.REASON_LAUNCHER_NOT_ENDED, **status: Any) -> Json:
    document = vmi("Running", **status)
    document["status"]["conditions"] = [{"type": kind, "status": "False", "reason": reason}]
    return document


async def test_fence_is_written_to_vmi_for_given_pods(gate: World) -> None:
    gate.api.put("virtualmachineinstances", waiting())
    assert await gate.ask("PUT", FENCE, body={"pods": [POD_UID]}) == (200, b"")
    stored = gate.api.find("virtualmachineinstances", "web") or {}
    assert stored["metadata"]["annotations"] == {names.ANNOTATION_FENCED: POD_UID}
    assert stored["status"]["activePods"] == {POD_UID: NODE}, "what follows is the controller's"


async def test_a_dry_run_writes_nothing(gate: World) -> None:
    gate.api.put("virtualmachineinstances", waiting())
    code, _ = await gate.ask("PUT", FENCE, body={"pods": [POD_UID], "dryRun": ["All"]})
    stored = gate.api.find("virtualmachineinstances", "web") or {}
    assert code == 200 and not stored["metadata"].get("annotations")


async def test_refusal_lists_expected_pods(gate: World) -> None:
    gate.api.put("virtualmachineinstances", waiting())
    code, body = await gate.ask("PUT", FENCE)
    assert code == 409 and f"{POD_UID} on node {NODE}" in body["message"]


def refused(document: Json, *pods: str) -> str:
    return refusal(msgspec.convert(document, VirtualMachineInstance), list(pods))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Ready", names.REASON_LAUNCHER_NOT_ENDED),
        ("Ready", names.REASON_NODE_NOT_READY),
        ("Synchronized", names.REASON_LAUNCHER_NOT_ENDED),
    ],
)
def test_fence_is_accepted_for_waiting_vmi(kind: str, reason: str) -> None:
    assert refused(waiting(kind, reason), POD_UID) == ""


def test_fence_is_refused_when_vm_may_still_run() -> None:
    """A running VM, an unlisted pod, and an additional pod."""
    assert "its node reports" in refused(vmi("Running", conditions=("Ready",)), POD_UID)
    assert "its node reports" in refused(waiting(reason="GuestNotRunning"), POD_UID)
    assert POD_UID in refused(waiting())
    assert POD_UID in refused(waiting(), "another")
    assert "other" in refused(waiting(activePods={POD_UID: NODE, "other": NODE}), POD_UID)
    assert "nothing to fence" in refused(waiting(activePods={POD_UID: ""}), POD_UID)
