"""IPv6 router advertisements to a guest: the default route, and the flags for DHCPv6.

One raw socket per guest, opened in the pod's network namespace and served by the handler's event loop. Lifetimes are
the maximum, so an absent handler takes nothing from a guest for hours.
Source: RFC 4861 sections 4.1, 4.2 and 6.2; RFC 8319 (lifetimes).
"""

import asyncio
import contextlib
import socket
import struct
from ipaddress import IPv6Interface

from handler.pod_network.vm_interface import Ipv6Router
from kit import proc

_ROUTER_SOLICITATION, _ROUTER_ADVERTISEMENT = 133, 134
_ICMP6_FILTER = 1
_ALL_NODES, _ALL_ROUTERS = "ff02::1", "ff02::2"
_MANAGED, _OTHER = 0x80, 0x40
_ON_LINK = 0x80
_LONGEST, _FOREVER = 65535, 0xFFFFFFFF
_FIRST_SECONDS, _STEADY_SECONDS = (0.5, 1.0, 2.0, 4.0, 16.0), 600.0
_QUIET_SECONDS, _DRAINED = 0.5, 64


def advertisement(gateway: IPv6Interface, mac: str, mtu: int, leads_on: bool = True) -> bytes:
    """The message; the kernel fills in its checksum. Without `leads_on` it announces no default route (lifetime 0)."""
    life = _LONGEST if leads_on else 0
    head = struct.pack("!BBHBBHII", _ROUTER_ADVERTISEMENT, 0, 0, 64, _MANAGED | _OTHER, life, 0, 0)
    link = struct.pack("!BB6s", 1, 1, bytes.fromhex(mac.replace(":", "")))
    largest = struct.pack("!BBHI", 5, 1, 0, mtu)
    prefix = struct.pack(
        "!BBBBIII16s",
        3,
        4,
        gateway.network.prefixlen,
        _ON_LINK,
        _FOREVER,
        _FOREVER,
        0,
        gateway.network.network_address.packed,
    )
    return head + link + largest + prefix


def open_socket(process: proc.Process, bridge: str) -> tuple[socket.socket, int]:
    """A socket bound to the bridge in the process's network namespace, and the bridge's index. Raises OSError.

    Changes the calling thread's namespace: call it through `kit.proc.isolated`.
    """
    with proc.closing(process.namespace("net")) as namespace:
        proc.setns(namespace, proc.CLONE_NEWNET)
    index = socket.if_nametoindex(bridge)
    raw = socket.socket(
        socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6
    )
    try:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode())
        # One bit for each of the 256 types; a set bit blocks.
        blocked = bytearray(b"\xff" * 32)
        blocked[_ROUTER_SOLICITATION // 32 * 4 + _ROUTER_SOLICITATION % 32 // 8] &= (
            ~(1 << _ROUTER_SOLICITATION % 8) & 0xFF
        )
        raw.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
        # The kernel applies its minimum: the guest controls how much is buffered here.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        # Receivers ignore packets with a hop limit below 255: they crossed a router.
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        membership = socket.inet_pton(socket.AF_INET6, _ALL_ROUTERS) + struct.pack("@I", index)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
    except BaseException:
        raw.close()
        raise
    return raw, index


class Advertiser:
    """Sends advertisements to one guest until closed. Keeps the pod's network namespace: close it with the pod."""

    def __init__(self, raw: socket.socket, index: int, message: bytes) -> None:
        self._socket = raw
        self._target = (_ALL_NODES, 0, 0, index)
        self._message = message
        self._loop = asyncio.get_running_loop()
        self._listening: asyncio.TimerHandle | None = None
        self._pauses = iter(_FIRST_SECONDS)
        self._listen()
        self._repeating: asyncio.Handle = self._loop.call_soon(self._repeat)

    @classmethod
    async def start(cls, process: proc.Process, bridge: str, router: Ipv6Router, mac: str, mtu: int) -> "Advertiser":
        """Start advertising on the bridge, whose MAC is `mac`. Raises OSError."""
        raw, index = await proc.isolated(lambda: open_socket(process, bridge))
        return cls(raw, index, advertisement(router.gateway, mac, mtu, router.leads_on))

    def close(self) -> None:
        """Stop. The guest keeps its configuration."""
        self._repeating.cancel()
        if self._listening is not None:
            self._listening.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _repeat(self) -> None:
        self._send()
        self._repeating = self._loop.call_later(next(self._pauses, _STEADY_SECONDS), self._repeat)

    def _listen(self) -> None:
        self._listening = None
        self._loop.add_reader(self._socket, self._solicited)

    def _solicited(self) -> None:
        """Respond once, then ignore solicitations for a while: a guest may send them at any rate."""
        with contextlib.suppress(OSError):
            for _ in range(_DRAINED):
                self._socket.recv(2048)
        self._loop.remove_reader(self._socket)
        self._listening = self._loop.call_later(_QUIET_SECONDS, self._listen)
        self._send()

    def _send(self) -> None:
        # Until the guest opens its tap the bridge has no link-local address: sent again later.
        with contextlib.suppress(OSError):
            self._socket.sendto(self._message, self._target)
