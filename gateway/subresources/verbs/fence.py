"""fence: an administrator confirms that no QEMU of a VM runs on an unreachable node (docs/nodes.md).

The confirmation is stored in the VMI for the given pods; the controller acts on it. No namespaced role has this
permission: a wrong confirmation lets two instances of a guest write to one disk.
"""

from aiohttp import web

from api import names
from api.errors import HyperletError
from api.kubevirt.vmi import VirtualMachineInstance
from api.launcher_pods import may_run_qemu
from gateway.http import status
from gateway.subresources import options
from gateway.subresources.request import SubresourceRequest
from kit import log

WAITING = frozenset({names.REASON_LAUNCHER_NOT_ENDED, names.REASON_NODE_NOT_READY})
"""Condition reasons of a VMI for which it is unknown whether its guest is running."""
_log = log.logger(component="fencing")


async def fence(call: SubresourceRequest) -> web.Response:
    """200: the VM may be started again. 409 unless it waits for exactly the given pods."""
    wanted = await call.options(options.FenceOptions)
    vmi = await call.vmi()
    if words := refusal(vmi, wanted.pods):
        raise status.conflict(names.KIND_VMI, call.name, words)
    meta = vmi.metadata
    body = {
        "metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resourceVersion,
            "annotations": {names.ANNOTATION_FENCED: ",".join(sorted(wanted.pods))},
        }
    }
    try:
        await call.kube.patch(VirtualMachineInstance, call.namespace, call.name, body, dry_run=bool(wanted.dryRun))
    except HyperletError as error:
        raise status.from_api_error(error, names.KIND_VMI, call.name) from error
    _log.warning(
        "fencing pods of a VMI on behalf of an administrator",
        user=call.user.name,
        pods=may_run_qemu(vmi),
        dry_run=bool(wanted.dryRun),
        **log.about(vmi),
    )
    return web.Response()


def refusal(vmi: VirtualMachineInstance, pods: list[str]) -> str:
    """Why the fence is refused; empty when it is accepted. Pure."""
    listed = may_run_qemu(vmi)
    if not listed:
        return "the VMI has no pod that may still run: nothing to fence"
    found = (vmi.status.conditions if vmi.status else None) or ()
    if not any(each.status == names.FALSE and each.reason in WAITING for each in found):
        return "the VMI does not wait for a pod to terminate: its node reports what runs there"
    if set(pods) != set(listed):
        shown = ", ".join(f"{uid} on node {node}" for uid, node in sorted(listed.items()))
        return f"pods: must be the UIDs of the pods that the VMI waits for: {shown}"
    return ""
