"""Encoding of DHCPv4 options.

Sources: RFC 2132 (most), RFC 3396 (long options), RFC 3397 (119, search), RFC 3442 (121, routes).
"""

import socket
from collections.abc import Iterable

Options = list[tuple[int, bytes]]

MASK, ROUTER, DNS, HOSTNAME, DOMAIN, MTU, NTP = 1, 3, 6, 12, 15, 26, 42
REQUESTED, LEASE, TYPE, SERVER, WANTED, LARGEST = 50, 51, 53, 54, 55, 57
TFTP_SERVER, BOOT_FILE, RAPID_COMMIT, SEARCH, ROUTES = 66, 67, 80, 119, 121
_PAD, _END = 0, 255
_LABEL, _NAME = 63, 253


def ipv4(text: str) -> bytes:
    """The four bytes of an address. Raises ValueError."""
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except OSError:
        raise ValueError(f"{text[:64]!r} is not an IPv4 address") from None


def mask(prefix: int) -> bytes:
    """A netmask of `prefix` bits."""
    return ((0xFFFFFFFF << (32 - min(prefix, 32))) & 0xFFFFFFFF).to_bytes(4, "big")


def names(domains: Iterable[str]) -> bytes:
    """Domain names in DNS encoding (RFC 1035 3.1), uncompressed. Invalid names are omitted."""
    return b"".join(name for domain in domains if (name := _name(domain)))


def _name(domain: str) -> bytes:
    labels = domain.strip(".").encode("ascii", "ignore").split(b".")
    if not all(0 < len(label) <= _LABEL for label in labels) or sum(len(label) + 1 for label in labels) > _NAME:
        return b""
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def route(destination: str, gateway: str) -> bytes:
    """One route of option 121, with as many bytes of the destination as its prefix needs. Raises ValueError."""
    network, bits = _network(destination)
    return bytes([bits]) + network[: -(-bits // 8)] + ipv4(gateway)


def holds(network: str, address: str) -> bool:
    """Whether an address is in a network (CIDR). Raises ValueError."""
    base, bits = _network(network)
    ones = int.from_bytes(mask(bits), "big")
    return int.from_bytes(base, "big") & ones == int.from_bytes(ipv4(address), "big") & ones


def _network(text: str) -> tuple[bytes, int]:
    address, _, prefix = text.partition("/")
    bits = int(prefix) if prefix.isdecimal() else 32 if not prefix else -1
    if not 0 <= bits <= 32:
        raise ValueError(f"{text[:64]!r} is not an IPv4 network")
    return ipv4(address), bits


def custom(tftp: str, boot_file: str, ntp: list[str], private: dict[int, str]) -> Options:
    """The options of a VMI's `dhcpOptions`. Raises ValueError."""
    options: Options = []
    if tftp:
        options.append((TFTP_SERVER, tftp.encode()))
    if boot_file:
        options.append((BOOT_FILE, boot_file.encode()))
    if ntp:
        options.append((NTP, b"".join(map(ipv4, ntp))))
    return options + [(code, value.encode()) for code, value in sorted(private.items())]


def encode(options: Options, room: int) -> bytes:
    """The options field, at most `room` bytes: options that do not fit are omitted, so order them by importance."""
    field = bytearray()
    for code, value in options:
        parts = [value[start : start + 255] for start in range(0, len(value), 255)] or [b""]
        encoded = b"".join(bytes([code, len(part)]) + part for part in parts)
        if len(field) + len(encoded) + 1 <= room:
            field += encoded
    field.append(_END)
    return bytes(field)


def decode(field: bytes) -> dict[int, bytes] | None:
    """The options of a field, parts of long ones joined; None if malformed."""
    options: dict[int, bytes] = {}
    position = 0
    while position < len(field):
        code = field[position]
        position += 1
        if code == _PAD:
            continue
        if code == _END:
            return options
        if position >= len(field) or position + 1 + field[position] > len(field):
            return None
        length = field[position]
        options[code] = options.get(code, b"") + field[position + 1 : position + 1 + length]
        position += 1 + length
    return options
