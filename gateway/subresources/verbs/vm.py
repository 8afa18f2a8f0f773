"""Subresources of a VM: start, stop, restart, migrate."""

from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from api import errors, names
from api.errors import HyperletError
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from gateway.http import status
from gateway.subresources import options
from gateway.subresources.request import SubresourceRequest
from gateway.subresources.verbs import run_state
from gateway.subresources.verbs.run_state import VmPatch
from kit import log

TRIES = 4
"""Attempts on a conflict with a concurrent write of the VM."""

Wanted = TypeVar("Wanted", bound=options.StartOptions | options.StopOptions | options.RestartOptions)
Decide = Callable[[VirtualMachine, VirtualMachineInstance | None, Wanted], list[VmPatch]]
_log = log.logger(component="vm-verbs")


async def start(call: SubresourceRequest) -> web.Response:
    """202: the start was requested."""
    return await _change(call, "start", run_state.start, await call.options(options.StartOptions))


async def stop(call: SubresourceRequest) -> web.Response:
    """202: the stop was requested."""
    return await _change(call, "stop", run_state.stop, await call.options(options.StopOptions))


async def restart(call: SubresourceRequest) -> web.Response:
    """202: the restart was requested."""
    return await _change(call, "restart", run_state.restart, await call.options(options.RestartOptions))


async def migrate(call: SubresourceRequest) -> web.Response:
    """501; other errors if the VM is not in a migratable state."""
    await call.options(options.MigrateOptions)
    vmi = await call.vmi_of(await call.vm())
    if vmi is None or phase_of(vmi) != names.PHASE_RUNNING:
        raise status.conflict(names.KIND_VM, call.name, run_state.NOT_RUNNING)
    raise status.not_implemented(
        "live migration is not implemented yet: stop and start the VM to move it to another node"
    )


async def _change(call: SubresourceRequest, verb: str, decide: Decide[Wanted], wanted: Wanted) -> web.Response:
    for _ in range(TRIES):
        vm = await call.vm()
        vmi = await call.vmi_of(vm)
        writes = decide(vm, vmi, wanted)
        try:
            await _write(call, vm, vmi, writes, dry_run=bool(wanted.dryRun))
        except errors.Conflict:
            continue
        except HyperletError as error:
            if isinstance(error, errors.InvalidObject) and any(f.path == "metadata.uid" for f in error.faults):
                continue  # the VM was replaced by another object with the same name
            raise status.from_api_error(error, names.KIND_VM, call.name) from error
        _log.info(
            "handling VM subresource request",
            verb=verb,
            dry_run=bool(wanted.dryRun),
            user=call.user.name,
            **log.about(vm),
        )
        return web.Response(status=202)
    raise status.conflict(names.KIND_VM, call.name, "the object has been modified; please try again")


async def _write(
    call: SubresourceRequest,
    vm: VirtualMachine,
    vmi: VirtualMachineInstance | None,
    writes: list[VmPatch],
    dry_run: bool,
) -> None:
    """Applies the patches in order, each conditional on an unchanged resourceVersion."""
    version = vm.metadata.resourceVersion
    for write in writes:
        if write.target == "vmi":
            patch = {"metadata": {"uid": vmi.metadata.uid if vmi else None}, **write.patch}
            await call.kube.patch(VirtualMachineInstance, call.namespace, call.name, patch, dry_run=dry_run)
            continue
        patch = {"metadata": {"uid": vm.metadata.uid, "resourceVersion": version}, **write.patch}
        subresource = "status" if write.target == "vm/status" else None
        changed = await call.kube.patch(
            VirtualMachine, call.namespace, call.name, patch, subresource=subresource, dry_run=dry_run
        )
        # A dry run does not change the resourceVersion.
        version = version if dry_run else changed.metadata.resourceVersion
