"""Port-forward: a WebSocket to a TCP or UDP port of the guest, at the address of its pod.

The address is that of the pod in the VMI's status with a matching owner UID: never an address reported by a guest, or
of a pod that only has the labels. A binary message is a part of the TCP stream, or one UDP datagram.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator
from typing import cast

from aiohttp import web
from prometheus_client import Gauge

from api import names
from api.errors import HyperletError
from api.k8s import owners
from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance, phase_of
from gateway.http import status
from gateway.http.websockets import Duplex
from gateway.subresources.request import SubresourceRequest, has_condition
from kit import log

DIAL_SECONDS = 10.0
BUFFER = 64 << 10
DATAGRAMS = 256
"""Queued datagrams from a guest; more are dropped."""
LARGEST_DATAGRAM = 65507
TUNNELS = Gauge("kubevirt_portforward_active_tunnels", "Open forwarded ports", ["namespace", "name"])

_log = log.logger(component="portforward")


async def to_vmi(call: SubresourceRequest) -> web.StreamResponse:
    """Forwards to a VMI."""
    return await _forward(call, await call.vmi())


async def to_vm(call: SubresourceRequest) -> web.StreamResponse:
    """Forwards to the VMI of a VM."""
    vm = await call.vm()
    vmi = await call.vmi_of(vm)
    if vmi is None:
        raise status.conflict(names.KIND_VM, call.name, "VMI is not started")
    return await _forward(call, vmi)


async def _forward(call: SubresourceRequest, vmi: VirtualMachineInstance) -> web.StreamResponse:
    port = port_of(call.request.match_info.get("port", ""))
    protocol = call.request.match_info.get("protocol", "tcp")
    if protocol not in ("tcp", "udp"):
        raise status.bad_request(f"protocol {protocol[:20]!r} is not tcp or udp")
    if has_condition(vmi, names.CONDITION_PAUSED):
        raise status.conflict(names.KIND_VMI, call.name, "VMI is paused")
    call.services.streams.admit(call.request, call.namespace, call.name, call.user.name)
    address = await _address(call, vmi)
    open_tunnel = _udp if protocol == "udp" else _tcp
    async with open_tunnel(address, port) as tunnel:
        _log.info("opening port-forward", user=call.user.name, port=port, protocol=protocol, **log.about(vmi))
        return await call.services.streams.serve(
            call.request, tunnel, call.namespace, call.name, TUNNELS, call.user.name
        )


def port_of(text: str) -> int:
    """Parses a port number. Raises StatusError (400)."""
    if not text.isascii() or not text.isdigit() or len(text) > 5 or not 0 < int(text) < 65536:
        raise status.bad_request(f"port {text[:20]!r} is not a number from 1 to 65535")
    return int(text)


async def _address(call: SubresourceRequest, vmi: VirtualMachineInstance) -> str:
    """The IP address of the VMI's pod. Raises StatusError (409) when there is none."""
    try:
        pods, _ = await call.kube.list(Pod, call.namespace, labels={names.LABEL_CREATED_BY: vmi.metadata.uid or ""})
    except HyperletError as error:
        raise status.from_api_error(error, names.KIND_VMI, call.name) from error
    node = vmi.status.nodeName if vmi.status else None
    matching = [pod for pod in pods if belongs(pod, vmi) and pod.spec.nodeName == node and pod.status.podIP]
    if phase_of(vmi) != names.PHASE_RUNNING or not matching:
        raise status.conflict(names.KIND_VMI, call.name, "VMI is not running")
    address = matching[0].status.podIP or ""
    if not _is_foreign(address):
        raise status.conflict(
            names.KIND_VMI, call.name, f"its pod has the address {address}, which is not a pod address"
        )
    return address


def belongs(pod: Pod, vmi: VirtualMachineInstance) -> bool:
    """Whether the pod is running, and VMI and pod reference each other by UID."""
    active = (vmi.status.activePods if vmi.status else None) or {}
    return owners.controls(vmi.metadata, pod.metadata) and pod.metadata.uid in active and pod.status.phase == "Running"


def _is_foreign(address: str) -> bool:
    """Whether the address is a unicast address of another host: not loopback, link-local or unspecified."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (found.is_loopback or found.is_unspecified or found.is_multicast or found.is_link_local)


# ---- tunnels --------------------------------------------------------------------------------------------------------


class _Stream:
    """A TCP connection to the guest."""

    whole = False

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes | None:
        """Data from the guest; None at EOF."""
        try:
            return await self._reader.read(BUFFER) or None
        except OSError as error:
            raise status.unavailable(f"the connection to the guest failed: {error.strerror or error}") from error

    async def write(self, data: bytes) -> None:
        """Data from the client."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise status.unavailable(f"the connection to the guest failed: {error.strerror or error}") from error


@contextlib.asynccontextmanager
async def _tcp(address: str, port: int) -> AsyncIterator[Duplex]:
    try:
        async with asyncio.timeout(DIAL_SECONDS):
            reader, writer = await asyncio.open_connection(address, port, limit=BUFFER)
    except (OSError, TimeoutError) as error:
        raise _undialled(error, port) from error
    try:
        yield _Stream(reader, writer)
    finally:
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    """A connected UDP socket."""

    whole = True

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(DATAGRAMS)
        self._transport: asyncio.DatagramTransport | None = None
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        # Not asserted: asyncio's transports are subclasses of DatagramTransport only since Python 3.12.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def pause_writing(self) -> None:
        """See asyncio."""
        self._room.clear()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._room.set()

    def datagram_received(self, data: bytes, _source: object) -> None:
        """See asyncio."""
        if not self._queue.full():
            self._queue.put_nowait(data)

    def error_received(self, error: Exception) -> None:
        """See asyncio. ICMP port unreachable is ignored: the client has to detect it, as with any UDP service."""

    async def read(self) -> bytes | None:
        """The next datagram from the guest."""
        return await self._queue.get()

    async def write(self, data: bytes) -> None:
        """Sends a datagram to the guest; an oversized one is dropped."""
        if self._transport is not None and len(data) <= LARGEST_DATAGRAM:
            self._transport.sendto(data)
        # sendto queues when the kernel buffer is full: wait until the queue is empty.
        await self._room.wait()


@contextlib.asynccontextmanager
async def _udp(address: str, port: int) -> AsyncIterator[Duplex]:
    try:
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            _Datagrams, remote_addr=(address, port)
        )
    except OSError as error:
        raise _undialled(error, port) from error
    try:
        yield protocol
    finally:
        transport.close()


def _undialled(error: BaseException, port: int) -> status.StatusError:
    words = (getattr(error, "strerror", None) or str(error)) if isinstance(error, OSError) else ""
    return status.too_large(f"dialing VM: port {port}: {words or 'timed out'}")
