"""NetworkAttachmentDefinitions, and the pod annotations that select them and report their status.

Source: the Kubernetes Network Plumbing Working Group's "Network Custom Resource Definition De-facto Standard" 1.3.
"""

import ipaddress
import re
from typing import Any, Final

import msgspec

from api.k8s.meta import ObjectMeta, Struct
from api.k8s.resource import Resource
from api.text import is_mac

GROUP: Final = "k8s.cni.cncf.io"
VERSION: Final = "v1"
KIND: Final = "NetworkAttachmentDefinition"
PLURAL: Final = "network-attachment-definitions"

ANNOTATION_NETWORKS: Final = "k8s.v1.cni.cncf.io/networks"
"""On a pod: the networks to attach."""
ANNOTATION_STATUS: Final = "k8s.v1.cni.cncf.io/network-status"
"""On a pod: its interfaces, a JSON list, the cluster network first."""
ANNOTATION_RESOURCE: Final = "k8s.v1.cni.cncf.io/resourceName"
"""On a definition: the extended resource that pods of this network request."""
SHARED_NAMESPACE: Final = "default"
"""Definitions in this namespace may be used from every namespace."""

MAX_NETWORKS: Final = 32
_MAX_TEXT: Final = 64 << 10
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,14}")
_RESERVED = ("lo", "eth0")


class NetworkAttachmentDefinitionSpec(Struct):
    """Configuration of the network."""

    config: str | None = None
    """CNI configuration as JSON: one plugin's, or a list of them under "plugins"."""


class NetworkAttachmentDefinition(Struct):
    """A secondary network for pods and virtual machines."""

    RESOURCE = Resource(GROUP, VERSION, KIND, PLURAL)

    apiVersion: str | None = None
    """API group and version."""
    kind: str | None = None
    """Kind of the object."""
    metadata: ObjectMeta = ObjectMeta()
    """Name, namespace, labels and life cycle."""
    spec: NetworkAttachmentDefinitionSpec = NetworkAttachmentDefinitionSpec()
    """Configuration of the network."""


class Selection(Struct):
    """One network selected by a pod, with validated names and addresses."""

    namespace: str
    """Namespace of the definition: the pod's own or `default`."""
    name: str
    """Name of the definition."""
    interface: str
    """Name of the interface in the pod."""
    mac: str | None = None
    """Requested MAC address, in lower case with colons."""
    ips: tuple[str, ...] = ()
    """Requested IP addresses, with or without prefix length."""
    cniArgs: dict[str, Any] | None = None
    """Passed to the plugin as `args.cni`."""

    @property
    def network(self) -> str:
        """`namespace/name` of the definition."""
        return f"{self.namespace}/{self.name}"


class _Element(msgspec.Struct, frozen=True, gc=False):
    """An element of the annotation's JSON list."""

    name: str
    namespace: str | None = None
    interface: str | None = None
    mac: str | None = None
    ips: list[str] | None = None
    cni_args: dict[str, Any] | None = msgspec.field(name="cni-args", default=None)
    default_route: list[str] | None = msgspec.field(name="default-route", default=None)


def selections(namespace: str, text: str | None) -> list[Selection]:
    """The networks of a pod's annotation, which is a JSON list or `[namespace/]name[@interface], ...`.

    `namespace` is the pod's. Interfaces without a name are named net1, net2, ... by position. Raises ValueError for
    invalid or unsupported elements.
    """
    text = (text or "").strip()
    if not text:
        return []
    if len(text) > _MAX_TEXT:
        raise ValueError(f"{ANNOTATION_NETWORKS} exceeds {_MAX_TEXT >> 10} KiB")
    elements = _from_json(text) if text.startswith("[") else [_from_words(word) for word in text.split(",")]
    if len(elements) > MAX_NETWORKS:
        raise ValueError(
            f"{ANNOTATION_NETWORKS} lists {len(elements)} networks, exceeding the maximum of {MAX_NETWORKS}"
        )
    found = [_checked(namespace, element, f"net{place}") for place, element in enumerate(elements, 1)]
    names = [each.interface for each in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{ANNOTATION_NETWORKS} lists the interface {name} more than once")
    return found


def _from_json(text: str) -> list[_Element]:
    try:
        return msgspec.json.decode(text, type=list[_Element])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(f"{ANNOTATION_NETWORKS} is not a JSON list of networks: {error}") from error


def _from_words(word: str) -> _Element:
    name, at, interface = word.strip().partition("@")
    if at and not interface:
        raise ValueError(f"{ANNOTATION_NETWORKS}: {word.strip()!r} has no interface name after '@'")
    namespace, slash, rest = name.partition("/")
    return _Element(rest, namespace, interface or None) if slash else _Element(name, None, interface or None)


def _checked(namespace: str, element: _Element, default: str) -> Selection:
    where = f"{ANNOTATION_NETWORKS}: network {element.name[:80]!r}"
    target = element.namespace or namespace
    if not _DNS_NAME.fullmatch(element.name):
        raise ValueError(f"{where}: not a valid NetworkAttachmentDefinition name")
    if not _DNS_LABEL.fullmatch(target):
        raise ValueError(f"{where}: {target[:80]!r} is not a valid namespace")
    if target not in (namespace, SHARED_NAMESPACE):
        raise ValueError(
            f"{where} is in namespace {target}; only networks of the pod's own namespace ({namespace}) and of "
            f"{SHARED_NAMESPACE} can be joined"
        )
    if element.default_route:
        raise ValueError(f"{where}: default-route is not supported: configure the route in the network's IPAM")
    interface = element.interface or default
    if not _INTERFACE.fullmatch(interface) or interface in _RESERVED:
        raise ValueError(f"{where}: {interface[:80]!r} is not a valid interface name")
    ips = tuple(_address(where, text) for text in element.ips or ())
    return Selection(
        namespace=target,
        name=element.name,
        interface=interface,
        mac=_mac(where, element.mac),
        ips=ips,
        cniArgs=element.cni_args,
    )


def _mac(where: str, text: str | None) -> str | None:
    if not text:
        return None
    mac = text.lower().replace("-", ":")
    if not is_mac(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ValueError(f"{where}: mac {text[:80]!r} is not a unicast MAC address")
    return mac


def _address(where: str, text: str) -> str:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError(f"{where}: {text[:80]!r} in ips is not an IP address") from None
    return text
