"""The desired status of a VMI, and the patch that writes it. Pure.

A merge patch replaces lists such as conditions as a whole, so every patch has the resourceVersion it was made from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from api import conditions, names
from api.disruption import Cause
from api.k8s.meta import Json, format_time
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema.codec import to_dict
from handler.launchers.reports import LauncherState
from handler.pod_network import interface_status
from handler.pod_network.setup import PodNetworkState
from protos import launcher_pb2 as pb

FIELDS = frozenset(
    {
        "activePods",
        "conditions",
        "guestOSInfo",
        "interfaces",
        "machine",
        "phase",
        "phaseTransitionTimestamps",
        "reason",
        "volumeStatus",
    }
)
"""The status fields that a handler writes. The API server rejects others: add new ones to
manifests/policies-handler.yaml as well."""
_NOT_MIGRATABLE = ("LiveMigrationNotSupported", "live migration is not supported by this version of hyperlet")
# Changes of these conditions are written at once; others may wait to be combined with other changes.
_URGENT = frozenset(
    {names.CONDITION_READY, names.CONDITION_PAUSED, names.CONDITION_SYNCHRONIZED, names.CONDITION_EMULATED}
)


@dataclass(frozen=True)
class Problem:
    """Why a VMI is not in its desired state."""

    reason: str
    message: str
    permanent: bool = False


@dataclass(frozen=True)
class StatusFacts:
    """Input of a running VMI's status."""

    state: LauncherState
    pod: Pod
    made: PodNetworkState
    kvm: str
    """The KVM probe's sentence."""
    told: frozenset[str] = frozenset()
    """The pod interfaces listed in the network-status annotation."""
    trouble: Problem | None = None
    """Why the running VM is not completely set up."""


@dataclass(frozen=True)
class StatusPatch:
    """A merge patch of the VMI. `urgent`: write it at once."""

    body: Json
    urgent: bool


def running(vmi: VirtualMachineInstance, facts: StatusFacts, now: datetime) -> StatusPatch | None:
    """The patch for a VMI whose domain is running; None if the status is up to date."""
    status = _status(vmi)
    wanted: Json = {"phase": names.PHASE_RUNNING, "reason": None}
    wanted["conditions"] = _merged(vmi, _conditions(facts, status), _gone(facts), now)
    interfaces = [to_dict(entry) for entry in interface_status.status(vmi, facts.made, facts.state, facts.told)]
    if interfaces or status.get("interfaces"):
        wanted["interfaces"] = interfaces
    if facts.state.machine:
        wanted["machine"] = {"type": facts.state.machine}
    if guest_os := to_dict(facts.state.os):
        wanted["guestOSInfo"] = guest_os
    if volumes := _volumes(vmi, status.get("volumeStatus"), facts.state):
        wanted["volumeStatus"] = volumes
    return _patch(vmi, status, wanted, now)


def failing(vmi: VirtualMachineInstance, trouble: Problem | None, now: datetime) -> StatusPatch | None:
    """The patch that reports a problem; a permanent one sets phase Failed."""
    status = _status(vmi)
    wanted: Json = {}
    if trouble is not None:
        found = [conditions.make(names.CONDITION_SYNCHRONIZED, False, trouble.reason, trouble.message)]
        if trouble.permanent:
            wanted = {"phase": names.PHASE_FAILED, "reason": trouble.reason}
            found.append(conditions.make(names.CONDITION_READY, False, names.REASON_GUEST_NOT_RUNNING, trouble.message))
        wanted["conditions"] = _merged(vmi, found, (), now)
    return _patch(vmi, status, wanted, now)


def ended(
    vmi: VirtualMachineInstance, state: LauncherState, now: datetime, cause: Cause | None = None
) -> StatusPatch | None:
    """The patch for a VMI whose domain has ended. `cause`: why its pod was terminated without the VMI's consent."""
    status = _status(vmi)
    failed = state.state == pb.DOMAIN_STATE_CRASHED or cause is not None
    words = state.message or ("the virtual machine crashed" if failed else "the guest shut down")
    if cause is not None:
        words = f"{cause.message}; {words}"
    found = [conditions.make(names.CONDITION_READY, False, names.REASON_GUEST_NOT_RUNNING, words)]
    gone = (names.CONDITION_AGENT_CONNECTED, names.CONDITION_PAUSED)
    wanted: Json = {
        "phase": names.PHASE_FAILED if failed else names.PHASE_SUCCEEDED,
        "reason": cause.reason if cause is not None else state.reason or None,
        "conditions": _merged(vmi, found, gone, now),
    }
    return _patch(vmi, status, wanted, now)


def disrupted(vmi: VirtualMachineInstance, cause: Cause, now: datetime) -> StatusPatch | None:
    """The patch that reports why a guest is being shut down unrequested; None if the status is up to date."""
    status = _status(vmi)
    words = f"{cause.message}; the guest is being shut down"
    wanted = [conditions.make(names.CONDITION_READY, False, cause.reason, words)]
    return _patch(vmi, status, {"conditions": _merged(vmi, wanted, (), now)}, now)


def _merged(vmi: VirtualMachineInstance, wanted: Iterable[Json], gone: Iterable[str], now: datetime) -> list[Json]:
    return conditions.merged(vmi.status.conditions if vmi.status else None, wanted, gone, format_time(now))


def _status(vmi: VirtualMachineInstance) -> Json:
    status: Json = msgspec.to_builtins(vmi.status) if vmi.status else {}
    for item in status.get("conditions") or ():
        item.pop("lastProbeTime", None)
    return status


def _conditions(facts: StatusFacts, status: Json) -> list[Json]:
    state = facts.state
    found = [
        _ready(facts),
        conditions.make(names.CONDITION_LIVE_MIGRATABLE, False, *_NOT_MIGRATABLE),
        _synchronized(facts.trouble),
    ]
    if state.state == pb.DOMAIN_STATE_PAUSED:
        found.append(
            conditions.make(
                names.CONDITION_PAUSED, True, names.REASON_PAUSED_BY_USER, "the virtual machine was paused by a user"
            )
        )
    elif state.state == pb.DOMAIN_STATE_IO_ERROR:
        words = state.message or "a disk failed or is full: the virtual machine is paused until it is fixed"
        found.append(conditions.make(names.CONDITION_PAUSED, True, names.REASON_PAUSED_IO_ERROR, words))
    if state.agent:
        found.append(conditions.make(names.CONDITION_AGENT_CONNECTED, True))
    known = any(item["type"] == names.CONDITION_EMULATED for item in status.get("conditions") or ())
    if state.accelerator == "tcg" and not known:
        words = f"the processor is emulated in software, which is slow: {facts.kvm}"
        found.append(conditions.make(names.CONDITION_EMULATED, True, "KVMNotUsable", words))
    return found


def _synchronized(trouble: Problem | None) -> Json:
    if trouble is None:
        return conditions.make(names.CONDITION_SYNCHRONIZED, True)
    return conditions.make(names.CONDITION_SYNCHRONIZED, False, trouble.reason, trouble.message)


def _gone(facts: StatusFacts) -> tuple[str, ...]:
    paused = facts.state.state != pb.DOMAIN_STATE_RUNNING
    return (() if paused else (names.CONDITION_PAUSED,)) + (
        () if facts.state.agent else (names.CONDITION_AGENT_CONNECTED,)
    )


def _ready(facts: StatusFacts) -> Json:
    if facts.state.state != pb.DOMAIN_STATE_RUNNING:
        return conditions.make(names.CONDITION_READY, False, names.REASON_GUEST_NOT_RUNNING, "the guest is paused")
    for item in facts.pod.status.conditions or ():
        if item.type == "ContainersReady" and item.status != names.TRUE:
            return conditions.make(
                names.CONDITION_READY, False, item.reason or "ContainersNotReady", item.message or ""
            )
    return conditions.make(names.CONDITION_READY, True)


def _volumes(vmi: VirtualMachineInstance, known: list[Json] | None, state: LauncherState) -> list[Json]:
    # Only the VMI's volumes: made-up names from a launcher would let the object grow without bound.
    own = {volume.name for volume in vmi.spec.volumes or ()}
    disks = {disk.volume: disk for disk in state.disks if disk.volume in own}
    result = []
    for entry in known or ():
        disk = disks.pop(entry["name"], None)
        result.append(entry | {"target": disk.target, "size": disk.size} if disk else entry)
    return result + [{"name": disk.volume, "target": disk.target, "size": disk.size} for disk in disks.values()]


def _patch(vmi: VirtualMachineInstance, status: Json, wanted: Mapping[str, Any], now: datetime) -> StatusPatch | None:
    changed = {key: value for key, value in wanted.items() if status.get(key) != value}
    if not changed:
        return None
    if "phase" in changed:
        stamps = status.get("phaseTransitionTimestamps") or []
        stamp = {"phase": wanted["phase"], "phaseTransitionTimestamp": format_time(now)}
        changed["phaseTransitionTimestamps"] = [
            *(item for item in stamps if item.get("phase") != wanted["phase"]),
            stamp,
        ]
    if foreign := changed.keys() - FIELDS:
        raise ValueError(f"status fields that a handler may not write: {', '.join(sorted(foreign))}")
    body = {"metadata": {"resourceVersion": vmi.metadata.resourceVersion}, "status": changed}
    return StatusPatch(
        body,
        "phase" in changed
        or _urgent(status.get("conditions"), changed.get("conditions"))
        # The controller waits for interfaces to be plugged or unplugged.
        or ("interfaces" in changed and _plugged(status.get("interfaces")) != _plugged(changed["interfaces"])),
    )


def _plugged(interfaces: list[Json] | None) -> set[str]:
    return {entry["name"] for entry in interfaces or () if entry.get("name")}


def _urgent(old: list[Json] | None, new: list[Json] | None) -> bool:
    if new is None:
        return False

    def chosen(items: list[Json] | None) -> list[tuple[str, ...]]:
        return sorted(
            (item["type"], item["status"], item.get("reason") or "") for item in items or () if item["type"] in _URGENT
        )

    return chosen(old) != chosen(new)
