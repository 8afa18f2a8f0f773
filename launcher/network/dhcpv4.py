"""A DHCPv4 server for one client and one address: bytes in, bytes out. Source: RFC 2131; rapid commit: RFC 4039."""

import struct
from dataclasses import dataclass

from launcher.network import dhcp_options as options
from protos import launcher_pb2 as pb

_HEADER = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = b"\x63\x82\x53\x63"
_REQUEST, _REPLY = 1, 2
_ETHERNET = 1
_BROADCAST = 0x8000
_DISCOVER, _OFFER, _REQUEST_LEASE, _ACK, _NAK, _INFORM = 1, 2, 3, 5, 6, 8
_INFINITE_LEASE = 0xFFFFFFFF
_IP_AND_UDP = 28
_SMALLEST, _LARGEST = 576, 1500
_UNSPECIFIED = bytes(4)
_ON_LINK = "0.0.0.0"


@dataclass(frozen=True, slots=True)
class Dhcpv4Request:
    """A client's request."""

    kind: int
    xid: int
    seconds: int
    client_address: bytes
    relay: bytes
    hardware: bytes
    options: dict[int, bytes]


def parse(packet: bytes) -> Dhcpv4Request | None:
    """Parse a client's packet; None for anything else."""
    if len(packet) < _HEADER.size:
        return None
    fields = _HEADER.unpack_from(packet)
    operation, kind, length, _, xid, seconds, _, client, _, _, relay, hardware, _, _, cookie = fields
    if operation != _REQUEST or kind != _ETHERNET or length != 6 or cookie != _COOKIE:
        return None
    given = options.decode(packet[_HEADER.size :])
    if given is None or len(given.get(options.TYPE, b"")) != 1:
        return None
    return Dhcpv4Request(given[options.TYPE][0], xid, seconds, client, relay, hardware, given)


class Dhcpv4Server:
    """Serves one MAC, always with the same address."""

    def __init__(self, mac: str, mtu: int, config: pb.Dhcp4, custom: options.Options) -> None:
        """Raises ValueError for an invalid configuration."""
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._address = options.ipv4(config.address)
        self._server = options.ipv4(config.server)
        self._boot_file = dict(custom).get(options.BOOT_FILE, b"")[:127]
        self._next_server = _address_or_unspecified(dict(custom).get(options.TFTP_SERVER, b""))
        self._lease = [(options.LEASE, struct.pack("!I", config.lease_seconds or _INFINITE_LEASE))]
        self._options = _configured(config, mtu) + custom

    def answer(self, packet: bytes) -> bytes | None:
        """The reply to a packet; None for no reply. Never raises."""
        request = parse(packet)
        if request is None or request.hardware[:6] != self._mac or request.relay != _UNSPECIFIED:
            return None
        if request.kind == _DISCOVER:
            if options.RAPID_COMMIT in request.options:
                return self._reply(request, _ACK, self._address, [*self._lease, (options.RAPID_COMMIT, b"")])
            return self._reply(request, _OFFER, self._address, self._lease)
        if request.kind == _REQUEST_LEASE:
            return self._confirm(request)
        if request.kind == _INFORM:
            return self._reply(request, _ACK, _UNSPECIFIED, [])
        return None

    def _confirm(self, request: Dhcpv4Request) -> bytes | None:
        chosen = request.options.get(options.SERVER)
        if chosen is not None and chosen != self._server:
            return None  # the client chose another server
        wanted = request.options.get(options.REQUESTED) or request.client_address
        if wanted != self._address:
            return self._packet(request, _NAK, _UNSPECIFIED, [(options.SERVER, self._server)])
        return self._reply(request, _ACK, self._address, self._lease)

    def _reply(self, request: Dhcpv4Request, kind: int, address: bytes, extra: options.Options) -> bytes:
        return self._packet(request, kind, address, [(options.SERVER, self._server), *extra, *self._options])

    def _packet(self, request: Dhcpv4Request, kind: int, address: bytes, given: options.Options) -> bytes:
        header = _HEADER.pack(
            _REPLY, _ETHERNET, 6, 0, request.xid, request.seconds, _BROADCAST, request.client_address, address,
            self._next_server, _UNSPECIFIED, request.hardware, b"", self._boot_file, _COOKIE,
        )  # fmt: skip
        room = _room(request) - _IP_AND_UDP - _HEADER.size
        return header + options.encode([(options.TYPE, bytes([kind])), *given], room)


def _room(request: Dhcpv4Request) -> int:
    """The largest datagram the client accepts, in bytes."""
    told = request.options.get(options.LARGEST, b"")
    return max(_SMALLEST, min(int.from_bytes(told, "big") if len(told) == 2 else _SMALLEST, _LARGEST))


def _address_or_unspecified(text: bytes) -> bytes:
    try:
        return options.ipv4(text.decode("ascii", "replace"))
    except ValueError:
        return _UNSPECIFIED


def _configured(config: pb.Dhcp4, mtu: int) -> options.Options:
    """Mask, routes, DNS and so on, by importance. Raises ValueError."""
    found: options.Options = [(options.MASK, options.mask(config.prefix))]
    if config.router:
        found.append((options.ROUTER, options.ipv4(config.router)))
    if routes := _routes(config):
        found.append((options.ROUTES, routes))
    if config.dns:
        found.append((options.DNS, b"".join(map(options.ipv4, config.dns))))
    if 68 <= mtu <= 0xFFFF:
        found.append((options.MTU, struct.pack("!H", mtu)))
    if config.hostname:
        found.append((options.HOSTNAME, config.hostname.encode("ascii", "ignore")))
    if config.search:
        found.append((options.DOMAIN, config.search[0].strip(".").encode("ascii", "ignore")))
        found.append((options.SEARCH, options.names(config.search)))
    return [(code, value) for code, value in found if value]


def _routes(config: pb.Dhcp4) -> bytes:
    """Option 121; empty where mask and router suffice.

    A gateway outside the guest's subnet (a pod's address is often a /32) needs a link route (gateway 0.0.0.0, RFC
    3442). Raises ValueError.
    """
    asked = [(route.destination, route.gateway) for route in config.routes]
    gateways = [gateway for _, gateway in asked] + [config.router] * bool(config.router)
    near = [f"{config.address}/{config.prefix}", *(network for network, gateway in asked if gateway == _ON_LINK)]
    far = [
        gateway
        for gateway in dict.fromkeys(gateways)
        if gateway != _ON_LINK and not any(options.holds(network, gateway) for network in near)
    ]
    if config.router and (asked or far):
        # A client that supports option 121 ignores option 3.
        asked.append(("0.0.0.0/0", config.router))
    asked += [(f"{gateway}/32", _ON_LINK) for gateway in far]
    # Link routes first: clients add routes in order, and the kernel rejects an unreachable gateway.
    return b"".join(options.route(*pair) for pair in sorted(asked, key=lambda pair: pair[1] != _ON_LINK))
