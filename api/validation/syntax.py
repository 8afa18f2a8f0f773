"""Formats of the strings in a VM's spec. Each function returns an error message, or None for a valid value."""

import base64
import binascii
import ipaddress
import json
import re

NETWORK_DATA = (
    "must be a JSON object: a config drive requires OpenStack's network_data.json; cloud-init's YAML goes into "
    "cloudInitNoCloud"
)
"""The error for network data of a config drive that fails `is_json_object`."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
# KubeVirt's rule for interfaces, with a length limit: the name becomes part of a QEMU identifier.
_DEVICE = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_.+-]+", re.ASCII)
_PRINTABLE = re.compile(r"[\x20-\x7e]*", re.ASCII)
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", re.ASCII)
_PCI = re.compile(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
# The grammar of github.com/distribution/reference: [host[:port]/]path[:tag][@digest]
_IMAGE = re.compile(
    r"((?P<host>[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?/)?"
    r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@[A-Za-z0-9]+([+._-][A-Za-z0-9]+)*:[0-9a-fA-F]{32,})?",
    re.ASCII,
)
# The shortest prefix of a masquerade network.
_SHORTEST = 8
_TIMEZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", re.ASCII)


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:77] + "...")


def dns_label(value: str) -> str | None:
    """RFC 1123 label: names of volumes and disks, hostname, subdomain."""
    if _LABEL.fullmatch(value):
        return None
    return f"{_shown(value)} must be 1 to 63 lower case letters, digits or '-', and must not start or end with '-'"


def device_name(value: str) -> str | None:
    """Name of a network, interface, input device or watchdog, as in the KubeVirt API."""
    if _DEVICE.fullmatch(value):
        return None
    return f"{_shown(value)} must be 1 to 63 letters, digits, '-' or '_'"


def port_name(value: str) -> str | None:
    """IANA service name, required for container ports (RFC 6335, section 5.1)."""
    if len(value) <= 15 and _LABEL.fullmatch(value) and "--" not in value and not value.replace("-", "").isdigit():
        return None
    return f"{_shown(value)} must be 1 to 15 lower case letters, digits or single '-', with at least one letter"


def object_name(value: str) -> str | None:
    """RFC 1123 subdomain: names of Kubernetes objects."""
    if len(value) <= 253 and _SUBDOMAIN.fullmatch(value):
        return None
    return (
        f"{_shown(value)} is not a valid object name: lower case letters, digits, '-' and '.', at most 253 characters"
    )


def label_key(value: str) -> str | None:
    """Key of a label or annotation: `[prefix/]name`."""
    prefix, slash, name = value.rpartition("/")
    if (not slash or (len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix))) and _QUALIFIED.fullmatch(name):
        return None
    return f"{_shown(value)} is not a label or annotation key: [prefix/]name of letters, digits, '-', '_' and '.'"


def label_value(value: str) -> str | None:
    """Value of a label."""
    if not value or _QUALIFIED.fullmatch(value):
        return None
    return (
        f"{_shown(value)} is not a label value: at most 63 letters, digits, '-', '_', '.', first and last alphanumeric"
    )


def word(value: str, limit: int = 256) -> str | None:
    """A string that is safe in XML, file names and command lines: serials, CPU models, features."""
    if len(value) <= limit and _WORD.fullmatch(value):
        return None
    return f"{_shown(value)} must be 1 to {limit} letters, digits, '_', '.', '+' or '-'"


def printable(value: str, limit: int = 256) -> str | None:
    """Printable ASCII: SMBIOS strings and kernel arguments."""
    if len(value) <= limit and _PRINTABLE.fullmatch(value):
        return None
    return f"{_shown(value)} must be at most {limit} printable ASCII characters"


def mac_address(value: str) -> str | None:
    """A unicast MAC address, not all zeros."""
    if not _MAC.fullmatch(value):
        return f"{_shown(value)} is not a MAC address such as 02:00:00:aa:bb:cc"
    octets = bytes.fromhex(value.replace(":", "").replace("-", ""))
    if octets[0] & 1:
        return f"{_shown(value)} is a multicast address: the second digit must be even"
    return None if any(octets) else f"{_shown(value)} must not be all zeros"


def pci_address(value: str) -> str | None:
    """domain:bus:slot.function."""
    return None if _PCI.fullmatch(value) else f"{_shown(value)} is not a PCI address such as 0000:81:01.0"


def uuid(value: str) -> str | None:
    """A UUID with dashes."""
    example = "5d307ca9-b3ef-428c-8861-06e72d69f223"
    return None if _UUID.fullmatch(value) else f"{_shown(value)} is not a UUID such as {example}"


def image(value: str) -> str | None:
    """A container image reference."""
    if len(value) <= 512 and _IMAGE.fullmatch(value):
        return None
    return f"{_shown(value)} is not an image reference such as registry.example/team/disk:1.0"


def timezone(value: str) -> str | None:
    """Syntax of a tz database name."""
    return None if len(value) <= 64 and _TIMEZONE.fullmatch(value) else f"{_shown(value)} is not a time zone name"


def image_path(value: str) -> str | None:
    """An absolute, normalized path inside an image.

    Symbolic links are not resolved: the code that opens the path must refuse links that leave the image.
    """
    if not value.startswith("/"):
        return f"{_shown(value)} must be an absolute path inside the image"
    parts = value[1:].split("/")
    if ".." in parts:
        return f"{_shown(value)} must not contain '..'"
    if "" in parts or "." in parts:
        return f"{_shown(value)} must be a normalized path: no '.', no '//', no trailing '/'"
    if len(value) > 1024 or any(len(part.encode()) > 255 for part in parts):
        return "the path is too long"
    return None


def ipv4_network(value: str, longest: int) -> str | None:
    """An IPv4 network such as 10.0.2.0/24, with a prefix of at most `longest` bits."""
    return _network(value, 4, longest)


def ipv6_network(value: str, longest: int) -> str | None:
    """An IPv6 network such as fd10:0:2::/120."""
    return _network(value, 6, longest)


def _network(value: str, version: int, longest: int) -> str | None:
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        network = None
    if network is None or network.version != version or "/" not in value:
        return f"{_shown(value)} is not an IPv{version} network in CIDR notation"
    if network.prefixlen > longest:
        return f"{_shown(value)} is too small: the prefix must be at most /{longest}"
    if network.prefixlen < _SHORTEST:
        return f"{_shown(value)} is too large: the prefix must be at least /{_SHORTEST}"
    if network.is_multicast or network.is_loopback or network.is_link_local or network.network_address.is_unspecified:
        return f"{_shown(value)} is not a network with unicast addresses for a guest"
    return None


def ip_address(value: str) -> str | None:
    """An IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return f"{_shown(value)} is not an IP address"
    return None


def ipv4_address(value: str) -> str | None:
    """An IPv4 address."""
    try:
        ipaddress.IPv4Address(value)
    except ValueError:
        return f"{_shown(value)} is not an IPv4 address"
    return None


def from_base64(value: str) -> bytes | None:
    """Decodes base64; None if invalid."""
    try:
        return base64.b64decode(value.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError):
        return None


def base64_size(value: str) -> int | None:
    """Decoded size of base64 in bytes; None if invalid."""
    data = from_base64(value)
    return None if data is None else len(data)


def is_json_object(data: bytes) -> bool:
    """Whether the data is a JSON object."""
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False
