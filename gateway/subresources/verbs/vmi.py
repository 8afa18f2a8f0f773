"""Subresources of a running VMI: pause, unpause, freeze, unfreeze, reset, softreboot and guest agent information."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web

from api import names
from api.k8s import meta
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from gateway.handler_connections import Stub
from gateway.http import status
from gateway.http.status import StatusError
from gateway.subresources import options
from gateway.subresources.request import SubresourceRequest, has_condition
from gateway.subresources.verbs.guest_info import filesystem_list, guest_agent_info, user_list
from kit import log
from protos import node_pb2 as pb

VM_NOT_RUNNING = "VM is not running"
VMI_NOT_RUNNING = "VMI is not running"
NO_AGENT = "VMI does not have guest agent connected"
THAW_SECONDS = 300
LONGEST_FREEZE_SECONDS = 3600
"""Upper limit of a freeze."""

T = TypeVar("T")
Ask = Callable[[Stub, pb.Vmi], Awaitable[T]]
_log = log.logger(component="instances")


async def pause(call: SubresourceRequest) -> web.Response:
    """200: the CPUs are paused."""
    wanted = await call.options(options.PauseOptions)
    vmi = await call.vmi()
    _need_running(vmi, VM_NOT_RUNNING)
    if vmi.spec.livenessProbe is not None:
        message = "Pausing VMIs with LivenessProbe is currently not supported"
        prefix = f'virtualmachineinstance.{names.GROUP} "{call.name}" is forbidden: '
        raise status.forbidden(prefix + message, {"name": call.name, "group": names.GROUP})
    if has_condition(vmi, names.CONDITION_PAUSED):
        raise _conflict(vmi, "VMI is already paused")
    state = vmi.status.migrationState if vmi.status else None
    if state is not None and not state.completed:
        raise _conflict(vmi, f"Cannot pause VM '{call.name}' because it is currently being migrated")
    return await _verb(call, vmi, "pause", lambda stub, who: stub.Pause(who), dry_run=bool(wanted.dryRun))


async def unpause(call: SubresourceRequest) -> web.Response:
    """200: the CPUs are running."""
    wanted = await call.options(options.UnpauseOptions)
    await _need_no_snapshot(call)
    vmi = await call.vmi()
    _need_running(vmi, VMI_NOT_RUNNING)
    if not has_condition(vmi, names.CONDITION_PAUSED):
        raise _conflict(vmi, "VMI is not paused")
    return await _verb(call, vmi, "unpause", lambda stub, who: stub.Unpause(who), dry_run=bool(wanted.dryRun))


async def freeze(call: SubresourceRequest) -> web.Response:
    """200: the guest's file systems are frozen until unfreeze, or until the timeout in the body."""
    seconds = freeze_seconds(await call.options(options.FreezeUnfreezeTimeout))
    vmi = await call.vmi()
    _need_running(vmi, VM_NOT_RUNNING)
    return await _verb(
        call, vmi, "freeze", lambda stub, who: stub.Freeze(pb.FreezeVmi(vmi=who, unfreeze_seconds=seconds))
    )


async def unfreeze(call: SubresourceRequest) -> web.Response:
    """200: the guest's file systems are thawed."""
    await call.options(options.Ignored)
    vmi = await call.vmi()
    _need_running(vmi, VMI_NOT_RUNNING)
    return await _verb(call, vmi, "unfreeze", lambda stub, who: stub.Unfreeze(who))


async def reset(call: SubresourceRequest) -> web.Response:
    """200: the VMI was reset."""
    await call.options(options.Ignored)
    vmi = await call.vmi()
    _need_running(vmi, f"Failed to reset non-running VMI with phase {phase_of(vmi) or 'Pending'}")
    return await _verb(call, vmi, "reset", lambda stub, who: stub.Reset(who))


async def softreboot(call: SubresourceRequest) -> web.Response:
    """200: a reboot was requested through the guest agent or ACPI."""
    await call.options(options.Ignored)
    vmi = await call.vmi()
    _need_running(vmi, VM_NOT_RUNNING)
    if has_condition(vmi, names.CONDITION_PAUSED):
        raise _conflict(vmi, "VMI is paused")
    features = vmi.spec.domain.features
    acpi = features.acpi if features is not None else None
    if not has_condition(vmi, names.CONDITION_AGENT_CONNECTED) and acpi is not None and acpi.enabled is False:
        raise _conflict(vmi, "VMI neither have the agent connected nor the ACPI feature enabled")
    return await _verb(call, vmi, "softreboot", lambda stub, who: stub.SoftReboot(who))


async def guestosinfo(call: SubresourceRequest) -> web.Response:
    """Guest OS information from the guest agent, with users and file systems if available."""
    vmi = await _with_agent(call)
    info = await _asked(call, vmi, lambda stub, who: stub.GuestInfo(who))
    users, filesystems = await asyncio.gather(
        _if_reported(call, vmi, lambda stub, who: stub.Users(who)),
        _if_reported(call, vmi, lambda stub, who: stub.Filesystems(who)),
    )
    frozen = vmi.status.fsFreezeStatus if vmi.status else None
    return web.json_response(guest_agent_info(info, users, filesystems, frozen))


async def userlist(call: SubresourceRequest) -> web.Response:
    """Users logged in to the guest."""
    return web.json_response(user_list(await _asked(call, await _with_agent(call), lambda stub, who: stub.Users(who))))


async def filesystemlist(call: SubresourceRequest) -> web.Response:
    """File systems mounted in the guest."""
    vmi = await _with_agent(call)
    return web.json_response(filesystem_list(await _asked(call, vmi, lambda stub, who: stub.Filesystems(who))))


# ---- helpers --------------------------------------------------------------------------------------------------------


def requested_by(vmi: VirtualMachineInstance) -> pb.Vmi:
    """The VMI reference for the handler, with the UID of the authorized object."""
    meta_ = vmi.metadata
    return pb.Vmi(namespace=meta_.namespace or "", name=meta_.name or "", uid=meta_.uid or "")


def node_of(vmi: VirtualMachineInstance) -> str:
    """The node of the VMI. Raises StatusError (409) without one."""
    node = vmi.status.nodeName if vmi.status else None
    if not node:
        raise _conflict(vmi, VMI_NOT_RUNNING)
    return node


def freeze_seconds(wanted: options.FreezeUnfreezeTimeout) -> int:
    """Seconds until the automatic thaw. Raises StatusError (400) for an invalid or too long timeout."""
    value = wanted.unfreezeTimeout
    if value is None:
        return THAW_SECONDS
    # A number is in nanoseconds, like Go's time.Duration.
    seconds = value / 1e9 if isinstance(value, int) else float(meta.parse_duration(value))
    if seconds < 0 or seconds > LONGEST_FREEZE_SECONDS:
        raise status.bad_request(f"unfreezeTimeout: {value} must be between 0 and {LONGEST_FREEZE_SECONDS} seconds")
    return math.ceil(seconds) or THAW_SECONDS


def _conflict(vmi: VirtualMachineInstance, why: str) -> StatusError:
    return status.conflict(names.KIND_VMI, vmi.metadata.name or "", why)


def _need_running(vmi: VirtualMachineInstance, words: str) -> None:
    if phase_of(vmi) != names.PHASE_RUNNING:
        raise _conflict(vmi, words)


async def _need_no_snapshot(call: SubresourceRequest) -> None:
    """Raises StatusError while a snapshot of the VMI's VM, if any, is in progress."""
    try:
        vm = await call.vm()
    except StatusError as error:
        if error.code == 404:
            return
        raise
    if vm.status is not None and vm.status.snapshotInProgress:
        raise status.conflict(names.KIND_VM, call.name, "VM snapshot is in progress")


async def _with_agent(call: SubresourceRequest) -> VirtualMachineInstance:
    vmi = await call.vmi()
    _need_running(vmi, VMI_NOT_RUNNING)
    if not has_condition(vmi, names.CONDITION_AGENT_CONNECTED):
        raise _conflict(vmi, NO_AGENT)
    return vmi


async def _asked(call: SubresourceRequest, vmi: VirtualMachineInstance, ask: Ask[T]) -> T:
    return await call.services.nodes.call(
        node_of(vmi), names.KIND_VMI, call.name, lambda stub: ask(stub, requested_by(vmi))
    )


async def _if_reported(call: SubresourceRequest, vmi: VirtualMachineInstance, ask: Ask[T]) -> T | None:
    """The response, or None when the guest agent does not support the command."""
    try:
        return await _asked(call, vmi, ask)
    except StatusError:
        return None


async def _verb(
    call: SubresourceRequest, vmi: VirtualMachineInstance, verb: str, ask: Ask[pb.Done], dry_run: bool = False
) -> web.Response:
    node_of(vmi)
    if not dry_run:
        await _asked(call, vmi, ask)
        _log.info("handling VMI subresource request", verb=verb, user=call.user.name, **log.about(vmi))
    return web.Response(status=200)
