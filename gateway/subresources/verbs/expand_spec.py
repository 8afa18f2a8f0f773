"""expand-spec and expand-vm-spec: a VM with its instancetype and preference expanded.

Instancetypes are not implemented: a VM without one is returned unchanged, and one with an instancetype is refused.
"""

from aiohttp import web

from api import names
from api.errors import InvalidObject
from api.kubevirt.vm import VirtualMachine
from api.schema import codec
from gateway.http import status
from gateway.subresources.request import SubresourceRequest

BODY_LIMIT = 3 << 20
"""Maximum bytes of a VM, as in the API server."""


async def of_stored(call: SubresourceRequest) -> web.Response:
    """The stored VM, expanded."""
    return _expanded(await call.vm())


async def of_sent(call: SubresourceRequest) -> web.Response:
    """The VM in the body, expanded and not stored."""
    body = await call.body(BODY_LIMIT)
    if not body.strip():
        raise status.bad_request("empty request body")
    try:
        vm = codec.decode_strict(VirtualMachine, body)
    except InvalidObject as error:
        raise status.bad_request("Object is not a valid VirtualMachine", error.faults) from error
    except RecursionError:
        raise status.bad_request("Object is not a valid VirtualMachine: it is nested too deeply") from None
    namespace = vm.metadata.namespace
    if namespace and namespace != call.namespace:
        raise status.bad_request(f"VM namespace must be empty or {call.namespace}, not {namespace[:80]!r}")
    return _expanded(vm)


def _expanded(vm: VirtualMachine) -> web.Response:
    if vm.spec.instancetype is not None or vm.spec.preference is not None:
        raise status.not_implemented(
            "instancetypes and preferences are not implemented yet: set the values in spec.template.spec"
        )
    found = codec.to_dict(vm)
    return web.Response(body=codec.encode({**found, "apiVersion": names.API_VERSION}), content_type="application/json")
