"""The DHCP servers' sockets, one per NIC and protocol, in the event loop."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from launcher import dhcp4, dhcp6
from launcher.log import log
from protos import launcher_pb2 as pb

_SERVER4, _CLIENT4, _SERVER6 = 67, 68, 547
_ALL_SERVERS6 = "ff02::1:2"
_LARGEST_PACKET = 4096
_BATCH = 16
"""Packets per turn of the event loop: a guest that floods does not keep the server from its other work."""


class DhcpError(Exception):
    """A server cannot be started."""


class DhcpService:
    """All servers of this pod."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._served: list[bytes] = []

    def serve(self, nics: Iterable[pb.Nic], custom: dict[str, list[list[Any]]]) -> None:
        """Starts what the NICs ask for, and ends what they no longer do. `custom`: options by NIC. Raises DhcpError."""
        wanted = [nic.SerializeToString() for nic in nics]
        if wanted == self._served and self._sockets:
            return
        self.close()
        for nic in nics:
            try:
                self._serve_nic(nic, [(code, bytes.fromhex(value)) for code, value in custom.get(nic.name, [])])
            except (OSError, ValueError) as error:
                self.close()
                raise DhcpError(f"interface {nic.name}: cannot serve DHCP: {error}") from None
        self._served = wanted

    def _serve_nic(self, nic: pb.Nic, custom: list[tuple[int, bytes]]) -> None:
        if nic.HasField("dhcp4"):
            server4 = dhcp4.Server(nic.mac, nic.mtu, nic.dhcp4, custom)
            self._listen(_socket4(nic.dhcp4.device), server4.answer, ("255.255.255.255", _CLIENT4))
        if nic.HasField("dhcp6"):
            self._listen(_socket6(nic.dhcp6.device), dhcp6.Server(nic.mac, nic.dhcp6).answer, None)

    def _listen(self, sock: socket.socket, answer: Callable[[bytes], bytes | None], to: Any) -> None:
        def readable() -> None:
            for _ in range(_BATCH):
                try:
                    packet, sender = sock.recvfrom(_LARGEST_PACKET)
                except OSError:
                    return  # nothing more; or the device is gone, and the next Sync tells of the new one
                if reply := answer(packet):
                    try:
                        sock.sendto(reply, to or sender)
                    except OSError as error:
                        log("warning", "a DHCP reply could not be sent", error=str(error))

        self._sockets.append(sock)
        asyncio.get_running_loop().add_reader(sock, readable)

    def close(self) -> None:
        """Ends all servers."""
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets, self._served = [], []


def _socket4(device: str) -> socket.socket:
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        _bind_to_device(sock, device)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        # The handler has set net.ipv4.ip_unprivileged_port_start=0 in the pod's network namespace.
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
