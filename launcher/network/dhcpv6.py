"""A DHCPv6 server for one client and one address: bytes in, bytes out. Source: RFC 8415; DNS options: RFC 3646."""

import socket
import struct

from launcher.network.dhcp_options import names
from protos import launcher_pb2 as pb

_SOLICIT, _ADVERTISE, _REQUEST, _CONFIRM, _RENEW, _REBIND, _REPLY, _RELEASE, _DECLINE = range(1, 10)
_INFORMATION_REQUEST = 11
_CLIENT_ID, _SERVER_ID, _IA_NA, _IA_ADDRESS, _STATUS, _RAPID_COMMIT, _DNS, _SEARCH = 1, 2, 3, 5, 13, 14, 23, 24
_FOR_ME = {_REQUEST, _RENEW, _RELEASE, _DECLINE}
_SUCCESS, _NO_ADDRESSES = 0, 2
_INFINITE_LEASE = 0xFFFFFFFF
_DUID_LL, _ETHERNET = 3, 1
_MOST_OPTIONS = 64


def parse(packet: bytes) -> tuple[int, bytes, list[tuple[int, bytes]]] | None:
    """Message type, transaction ID and options; None if malformed."""
    if len(packet) < 4:
        return None
    options: list[tuple[int, bytes]] = []
    position = 4
    while position < len(packet):
        if position + 4 > len(packet) or len(options) >= _MOST_OPTIONS:
            return None
        code, length = struct.unpack_from("!HH", packet, position)
        position += 4
        if position + length > len(packet):
            return None
        options.append((code, packet[position : position + length]))
        position += length
    return packet[0], packet[1:4], options


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("!HH", code, len(value)) + value


class Dhcpv6Server:
    """Leases one address, with infinite lifetime, to any client: only the guest is on the link."""

    def __init__(self, mac: str, config: pb.Dhcp6) -> None:
        """Raises ValueError, OSError for an invalid configuration."""
        # The server's DUID must differ from the client's: the same MAC with the "locally administered" bit flipped.
        hardware = bytes.fromhex(mac.replace(":", ""))
        own = bytes([hardware[0] ^ 2]) + hardware[1:]
        self._id = struct.pack("!HH", _DUID_LL, _ETHERNET) + own
        self._address = _ipv6(config.address)
        self._dns = b"".join(map(_ipv6, config.dns))
        self._search = names(config.search)

    def answer(self, packet: bytes) -> bytes | None:
        """The reply to a packet; None for no reply. Never raises."""
        parsed = parse(packet)
        if parsed is None:
            return None
        kind, transaction, options = parsed
        given = dict(reversed(options))
        if not self._is_for_us(kind, given):
            return None
        body = self._body(kind, options)
        if body is None:
            return None
        fast = kind == _SOLICIT and _RAPID_COMMIT in given
        head = bytes([_ADVERTISE if kind == _SOLICIT and not fast else _REPLY]) + transaction
        head += _option(_SERVER_ID, self._id)
        if _CLIENT_ID in given:
            head += _option(_CLIENT_ID, given[_CLIENT_ID])
        return head + (_option(_RAPID_COMMIT, b"") if fast else b"") + body

    def _is_for_us(self, kind: int, given: dict[int, bytes]) -> bool:
        if kind in _FOR_ME:
            return given.get(_SERVER_ID) == self._id and _CLIENT_ID in given
        if kind == _INFORMATION_REQUEST:
            return given.get(_SERVER_ID, self._id) == self._id
        return kind in (_SOLICIT, _CONFIRM, _REBIND) and _CLIENT_ID in given and _SERVER_ID not in given

    def _body(self, kind: int, options: list[tuple[int, bytes]]) -> bytes | None:
        settings = self._settings()
        if kind == _INFORMATION_REQUEST:
            return settings
        if kind in (_RELEASE, _DECLINE, _CONFIRM):
            return _option(_STATUS, struct.pack("!H", _SUCCESS))
        associations = [value for code, value in options if code == _IA_NA and len(value) >= 12]
        if not associations:
            return None
        return b"".join(self._association(value[:4], index == 0) for index, value in enumerate(associations)) + settings

    def _association(self, identity: bytes, first: bool) -> bytes:
        if not first:
            refusal = _option(_STATUS, struct.pack("!H", _NO_ADDRESSES))
            return _option(_IA_NA, identity + struct.pack("!II", 0, 0) + refusal)
        address = _option(_IA_ADDRESS, self._address + struct.pack("!II", _INFINITE_LEASE, _INFINITE_LEASE))
        return _option(_IA_NA, identity + struct.pack("!II", _INFINITE_LEASE, _INFINITE_LEASE) + address)

    def _settings(self) -> bytes:
        dns = _option(_DNS, self._dns) if self._dns else b""
        return dns + (_option(_SEARCH, self._search) if self._search else b"")


def _ipv6(text: str) -> bytes:
    try:
        return socket.inet_pton(socket.AF_INET6, text)
    except OSError:
        raise ValueError(f"{text[:64]!r} is not an IPv6 address") from None
