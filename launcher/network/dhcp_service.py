"""The DHCP servers: one socket per NIC and protocol, in the event loop."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from launcher.log import log
from launcher.network import dhcp_options, dhcpv4, dhcpv6
from protos import launcher_pb2 as pb

_SERVER4, _CLIENT4, _SERVER6 = 67, 68, 547
_ALL_SERVERS6 = "ff02::1:2"
_LARGEST_PACKET = 4096
_BATCH = 16
"""Packets per turn of the event loop: a flooding guest does not block the server."""


DhcpSettings = tuple[bytes, str, list[int]]
"""Everything that a NIC's servers depend on: its message, extra options, indices of the devices they serve."""


class DhcpError(Exception):
    """A server cannot be started."""


class DhcpService:
    """All DHCP servers of this pod, by NIC. Unchanged NICs keep their servers."""

    def __init__(self) -> None:
        self._served: dict[str, _NicServer] = {}

    def serve(self, nics: Iterable[pb.Nic], custom: dict[str, list[list[Any]]]) -> None:
        """Start servers for new or changed NICs, and stop those of others. `custom`: extra options by NIC.

        Raises DhcpError, which names every failed NIC, after starting the others.
        """
        wanted = {nic.name: nic for nic in nics}
        settings = {name: _settings(nic, custom.get(name, [])) for name, nic in wanted.items()}
        for name in [name for name, served in self._served.items() if served.settings != settings.get(name)]:
            self._served.pop(name).close()
        failures = []
        for name in wanted.keys() - self._served.keys():
            served = _NicServer(settings[name])
            try:
                served.start(wanted[name], [(code, bytes.fromhex(value)) for code, value in custom.get(name, [])])
            except (OSError, ValueError) as error:
                served.close()
                failures.append(f"interface {name}: cannot serve DHCP: {error}")
            else:
                self._served[name] = served
        if failures:
            raise DhcpError("; ".join(sorted(failures)))

    def close(self) -> None:
        """Stop all servers."""
        for served in self._served.values():
            served.close()
        self._served = {}


def _settings(nic: pb.Nic, custom: list[list[Any]]) -> DhcpSettings:
    devices = [config.device for config in (nic.dhcp4, nic.dhcp6) if config.device]
    return nic.SerializeToString(deterministic=True), json.dumps(custom), [_index(device) for device in devices]


def _index(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return 0


class _NicServer:
    """The servers of one NIC."""

    def __init__(self, settings: DhcpSettings) -> None:
        self.settings = settings
        self._sockets: list[socket.socket] = []

    def start(self, nic: pb.Nic, custom: dhcp_options.Options) -> None:
        """Start the servers. Raises OSError, ValueError."""
        if nic.HasField("dhcp4"):
            server4 = dhcpv4.Dhcpv4Server(nic.mac, nic.mtu, nic.dhcp4, custom)
            self._listen(_socket4(nic.dhcp4.device), server4.answer, ("255.255.255.255", _CLIENT4))
        if nic.HasField("dhcp6"):
            self._listen(_socket6(nic.dhcp6.device), dhcpv6.Dhcpv6Server(nic.mac, nic.dhcp6).answer, None)

    def _listen(self, sock: socket.socket, answer: Callable[[bytes], bytes | None], to: Any) -> None:
        def readable() -> None:
            for _ in range(_BATCH):
                try:
                    packet, sender = sock.recvfrom(_LARGEST_PACKET)
                except OSError:
                    return  # no more packets; or the device was deleted, and the next Sync has the new one
                if reply := answer(packet):
                    try:
                        sock.sendto(reply, to or sender)
                    except OSError as error:
                        log("warning", "a DHCP reply could not be sent", error=str(error))

        self._sockets.append(sock)
        asyncio.get_running_loop().add_reader(sock, readable)

    def close(self) -> None:
        """Stop the servers."""
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets = []


def _socket4(device: str) -> socket.socket:
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        _bind_to_device(sock, device)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        # The handler sets net.ipv4.ip_unprivileged_port_start=0 in the pod's network namespace.
        sock.bind(("0.0.0.0", _SERVER4))
        undo.pop_all()
        return sock


def _socket6(device: str) -> socket.socket:
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        _bind_to_device(sock, device)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        group = socket.inet_pton(socket.AF_INET6, _ALL_SERVERS6)
        member = struct.pack("@16sI", group, socket.if_nametoindex(device))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
        sock.bind(("::", _SERVER6))
        undo.pop_all()
        return sock


def _bind_to_device(sock: socket.socket, device: str) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
