"""The table of endpoints, the source of routes, discovery, authorization and OpenAPI."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from api import names
from gateway.http import status
from gateway.subresources import options
from gateway.subresources.request import SubresourceRequest
from gateway.subresources.streams import consoles, portforward
from gateway.subresources.verbs import expand_spec, fence
from gateway.subresources.verbs import vm as vm_verbs
from gateway.subresources.verbs import vmi as vmi_verbs

VERSIONS = (names.VERSION, names.OLD_VERSION)
"""Served versions, the preferred one first."""
EXPAND = "expand-vm-spec"
JSON = "application/json"

Handle = Callable[[SubresourceRequest], Awaitable[web.StreamResponse]]
_VERBS = {"GET": "get", "PUT": "update"}


@dataclass(frozen=True)
class Endpoint:
    """A method of a subresource. `subresource` is its name in RBAC rules; `parameters` follow it in the path."""

    method: str
    resource: str
    subresource: str
    handle: Handle
    doc: str
    parameters: tuple[str, ...] = ()
    body: type[Any] | None = None
    query: tuple[str, ...] = ()
    media: str = ""
    """Media type of the response body; empty without a body."""
    success: int = 200

    @property
    def verb(self) -> str:
        """The RBAC verb."""
        return _VERBS[self.method]

    @property
    def name(self) -> str:
        """The name in discovery and RBAC rules."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource

    def path(self, version: str) -> str:
        """The route."""
        root = f"/apis/{names.SUBRESOURCE_GROUP}/{version}/namespaces/{{namespace}}/{self.resource}"
        if not self.subresource:
            return root
        return "/".join([root, "{name}", self.subresource, *(f"{{{each}}}" for each in self.parameters)])


def _later(what: str) -> Handle:
    """A handler that returns 501."""

    async def answer(call: SubresourceRequest) -> web.StreamResponse:
        raise status.not_implemented(f"{what} not implemented yet")

    return answer


def _vm(method: str, subresource: str, handle: Handle, doc: str, **more: Any) -> Endpoint:
    return Endpoint(method, names.PLURAL_VM, subresource, handle, doc, **more)


def _vmi(method: str, subresource: str, handle: Handle, doc: str, **more: Any) -> Endpoint:
    return Endpoint(method, names.PLURAL_VMI, subresource, handle, doc, **more)


def _portforward(of: Callable[..., Endpoint], handle: Handle) -> tuple[Endpoint, Endpoint]:
    """Port-forward endpoints with and without a protocol; the default is TCP."""
    tcp = of("GET", "portforward", handle, "Forward a TCP port (WebSocket).", parameters=("port",), success=101)
    either = of(
        "GET", "portforward", handle, "Forward a port (WebSocket).", parameters=("port", "protocol"), success=101
    )
    return tcp, either


_HOTPLUG = _later("hot-plugging of volumes is")


async def _dump(call: SubresourceRequest) -> web.StreamResponse:
    """501, with a hint about the claim that `virtctl memory-dump get --create-claim` creates before the request."""
    claim = (await call.options(options.MemoryDump)).claimName
    left = (
        f"; if PersistentVolumeClaim {claim} was created for the dump, delete it: kubectl delete pvc {claim}"
        if claim
        else ""
    )
    raise status.not_implemented(f"memory dumps are not implemented yet{left}")


_DUMP = _later("memory dumps are")
_SEV = _later("AMD SEV is")
_GRAPH = _later("object graphs are")
_EVACUATION = _later("evacuation is")

ENDPOINTS: tuple[Endpoint, ...] = (
    _vm("PUT", "start", vm_verbs.start, "Start a VirtualMachine.", body=options.StartOptions, success=202),
    _vm("PUT", "stop", vm_verbs.stop, "Stop a VirtualMachine.", body=options.StopOptions, success=202),
    _vm("PUT", "restart", vm_verbs.restart, "Restart a VirtualMachine.", body=options.RestartOptions, success=202),
    _vm(
        "PUT",
        "migrate",
        vm_verbs.migrate,
        "Migrate a running VirtualMachine.",
        body=options.MigrateOptions,
        success=202,
    ),
    _vm(
        "GET",
        "expand-spec",
        expand_spec.of_stored,
        "Get the VirtualMachine with its instancetype and preference expanded.",
        media=JSON,
    ),
    *_portforward(_vm, portforward.to_vm),
    _vm("PUT", "addvolume", _HOTPLUG, "Add a volume to a running VirtualMachine."),
    _vm("PUT", "removevolume", _HOTPLUG, "Remove a volume from a running VirtualMachine."),
    _vm("PUT", "memorydump", _dump, "Dump the memory of a VirtualMachine."),
    _vm("PUT", "removememorydump", _DUMP, "Remove the association with a memory dump."),
    _vm("PUT", "evacuate/cancel", _EVACUATION, "Cancel an evacuation."),
    _vm("GET", "objectgraph", _GRAPH, "List the objects that belong to a VirtualMachine."),
    _vmi("PUT", "pause", vmi_verbs.pause, "Pause a VirtualMachineInstance.", body=options.PauseOptions),
    _vmi("PUT", "unpause", vmi_verbs.unpause, "Unpause a VirtualMachineInstance.", body=options.UnpauseOptions),
    _vmi("PUT", "freeze", vmi_verbs.freeze, "Freeze the guest's file systems.", body=options.FreezeUnfreezeTimeout),
    _vmi("PUT", "unfreeze", vmi_verbs.unfreeze, "Unfreeze the guest's file systems."),
    _vmi("PUT", "reset", vmi_verbs.reset, "Reset a VirtualMachineInstance."),
    _vmi("PUT", "softreboot", vmi_verbs.softreboot, "Reboot the guest through the guest agent or ACPI."),
    _vmi(
        "PUT",
        "fence",
        fence.fence,
        "Confirm that pods of a VirtualMachineInstance have terminated.",
        body=options.FenceOptions,
    ),
    _vmi(
        "GET",
        "guestosinfo",
        vmi_verbs.guestosinfo,
        "Get information about the guest operating system from the guest agent.",
        media=JSON,
    ),
    _vmi("GET", "userlist", vmi_verbs.userlist, "List the users logged in to the guest.", media=JSON),
    _vmi("GET", "filesystemlist", vmi_verbs.filesystemlist, "List the file systems mounted in the guest.", media=JSON),
    _vmi(
        "GET",
        "console",
        consoles.console,
        "Connect to the serial console (WebSocket).",
        query=("shared", "takeover"),
        success=101,
    ),
    _vmi("GET", "vnc", consoles.vnc, "Connect to the VNC server (WebSocket).", query=("preserveSession",), success=101),
    _vmi(
        "GET",
        "vnc/screenshot",
        consoles.screenshot,
        "Get a screenshot as PNG.",
        query=("moveCursor",),
        media="image/png",
    ),
    *_portforward(_vmi, portforward.to_vmi),
    _vmi("GET", "usbredir", _later("USB redirection is"), "Redirect a USB device (WebSocket)."),
    _vmi("GET", "vsock", _later("VSOCK is"), "Connect to a VSOCK port (WebSocket)."),
    _vmi("PUT", "addvolume", _HOTPLUG, "Add a volume to a running VirtualMachineInstance."),
    _vmi("PUT", "removevolume", _HOTPLUG, "Remove a volume from a running VirtualMachineInstance."),
    _vmi("PUT", "backup", _later("backups are"), "Back up a VirtualMachineInstance."),
    _vmi("PUT", "evacuate/cancel", _EVACUATION, "Cancel an evacuation."),
    _vmi("GET", "objectgraph", _GRAPH, "List the objects that belong to a VirtualMachineInstance."),
    _vmi("GET", "sev/fetchcertchain", _SEV, "Get the SEV certificate chain of the node."),
    _vmi("GET", "sev/querylaunchmeasurement", _SEV, "Get the SEV launch measurement."),
    _vmi("PUT", "sev/setupsession", _SEV, "Set up a SEV session."),
    _vmi("PUT", "sev/injectlaunchsecret", _SEV, "Inject a SEV launch secret."),
    Endpoint(
        "PUT",
        EXPAND,
        "",
        expand_spec.of_sent,
        "Expand the VirtualMachine in the request body.",
        body=options.MachineToExpand,
        media=JSON,
    ),
)
