"""Serial console, VNC and the screenshot of a VMI."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web
from prometheus_client import Gauge

from api import names
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from gateway.http import status
from gateway.subresources.request import SubresourceRequest
from gateway.subresources.streams import rfb
from gateway.subresources.streams.handler_streams import ConsoleStream, VncStream, handler_stream
from gateway.subresources.verbs.vmi import VMI_NOT_RUNNING, node_of, requested_by
from kit import log
from protos import launcher_pb2, node_pb2

WHO_LIMIT = 256
"""Maximum bytes of a user name shown to other users."""
PNG = b"\x89PNG\r\n\x1a\n"
CONSOLES = Gauge("kubevirt_console_active_connections", "Open serial consoles", ["namespace", "vmi"])
VIEWERS = Gauge("kubevirt_vnc_active_connections", "Open VNC connections", ["namespace", "vmi"])

_log = log.logger(component="consoles")


async def console(call: SubresourceRequest) -> web.StreamResponse:
    """Serial console (WebSocket).

    The most recent client is read-write; the previous one becomes read-only and gets a notice. `?shared=true` attaches
    read-only; `?takeover=false` fails with 409 instead of taking over.
    """
    watch = flag(call.request, "shared", False)
    takeover = flag(call.request, "takeover", True)
    vmi = await call.vmi()
    need_console(vmi)
    call.services.streams.admit(call.request, call.namespace, call.name, call.user.name)
    first = node_pb2.ConsoleInput(
        vmi=requested_by(vmi),
        input=launcher_pb2.ConsoleInput(
            watch=watch, takeover=takeover and not watch, who=terminal_name(call.user.name)
        ),
    )
    nodes, node = call.services.nodes, node_of(vmi)
    async with handler_stream(nodes, node, call.name, lambda stub: stub.Console, first) as talk:
        _log.info("opening serial console", user=call.user.name, watch=watch, **log.about(vmi))
        return await call.services.streams.serve(
            call.request, ConsoleStream(talk), call.namespace, call.name, CONSOLES, call.user.name
        )


async def vnc(call: SubresourceRequest) -> web.StreamResponse:
    """VNC (WebSocket), for any number of clients; `preserveSession` is accepted, and no client is ever disconnected."""
    vmi = await call.vmi()
    need_screen(vmi)
    call.services.streams.admit(call.request, call.namespace, call.name, call.user.name)
    async with _screen(call, vmi) as screen:
        _log.info("opening VNC connection", user=call.user.name, **log.about(vmi))
        return await call.services.streams.serve(
            call.request, screen, call.namespace, call.name, VIEWERS, call.user.name
        )


async def screenshot(call: SubresourceRequest) -> web.Response:
    """A screenshot as PNG. `?moveCursor=true` moves the pointer first, which wakes a screen saver."""
    move = flag(call.request, "moveCursor", False)
    vmi = await call.vmi()
    need_screen(vmi)
    if move:
        async with _screen(call, vmi) as screen:
            await rfb.wake(screen)
    node = node_of(vmi)
    reply = await call.services.nodes.call(
        node, names.KIND_VMI, call.name, lambda stub: stub.Screenshot(requested_by(vmi))
    )
    if not reply.png.startswith(PNG):
        raise status.too_large(f"node {node} did not return a PNG image")
    _log.info("took a screenshot", user=call.user.name, **log.about(vmi))
    return web.Response(
        body=reply.png,
        content_type="image/png",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    )


@contextlib.asynccontextmanager
async def _screen(call: SubresourceRequest, vmi: VirtualMachineInstance) -> AsyncIterator[VncStream]:
    nodes, first = call.services.nodes, node_pb2.VncInput(vmi=requested_by(vmi))
    async with handler_stream(nodes, node_of(vmi), call.name, lambda stub: stub.Vnc, first) as talk:
        yield VncStream(talk)


def need_console(vmi: VirtualMachineInstance) -> None:
    """Raises StatusError unless the VMI is running and has a serial console."""
    if vmi.spec.domain.devices.autoattachSerialConsole is False:
        raise status.bad_request("No serial consoles are present.")
    if phase_of(vmi) == names.PHASE_FAILED:
        raise status.conflict(names.KIND_VMI, vmi.metadata.name or "", "VMI is in failed status")
    if phase_of(vmi) != names.PHASE_RUNNING:
        raise status.bad_request(VMI_NOT_RUNNING)


def need_screen(vmi: VirtualMachineInstance) -> None:
    """Raises StatusError unless the VMI is running and has a graphics device."""
    if vmi.spec.domain.devices.autoattachGraphicsDevice is False:
        raise status.bad_request("No graphics devices are present.")
    if phase_of(vmi) != names.PHASE_RUNNING:
        raise status.bad_request(VMI_NOT_RUNNING)


def flag(request: web.Request, name: str, default: bool) -> bool:
    """A boolean query parameter, parsed like Go's strconv.ParseBool. Raises StatusError (400)."""
    text = request.query.get(name, "")
    if not text:
        return default
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise status.bad_request(f"{name}: {text[:40]!r} is not true or false")


def terminal_name(user: str) -> str:
    """A user name for other users' terminals, without control characters."""
    return status.readable(user).encode()[:WHO_LIMIT].decode("utf-8", "ignore")
