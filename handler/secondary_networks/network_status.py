"""The network-status annotation of a pod, in Multus' format. Pure.

Source: the Network Plumbing Working Group's "Network Custom Resource Definition De-facto Standard" 1.3, section 4.2.
"""

import ipaddress
from collections.abc import Sequence
from typing import Any

import msgspec

from api import network_attachments
from api.k8s.meta import Json
from api.k8s.objects import Pod
from handler.secondary_networks.attachment_records import Attachment

_MAX_TEXT = 128 << 10
_MAX_ADDRESSES = 32


def entries(pod: Pod) -> list[Json]:
    """The annotation's valid entries."""
    text = (pod.metadata.annotations or {}).get(network_attachments.ANNOTATION_STATUS) or ""
    try:
        found = msgspec.json.decode(text[:_MAX_TEXT], type=list[Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return []
    return [each for each in found if isinstance(each, dict) and isinstance(each.get("interface"), str)]


def text(pod: Pod, default: str, mac: str, joined: Sequence[Attachment]) -> str:
    """The annotation for a pod with attached networks.

    The pod network comes first: `default` is its name on this node, `mac` that of eth0. Its existing entry is kept,
    since a VM takes over the interface's addresses.
    """
    own = next((each for each in entries(pod) if each.get("default") is True), None)
    if own is None:
        addresses = [each.ip for each in pod.status.podIPs or ()] or [pod.status.podIP or ""]
        own = {"name": default, "interface": "eth0", "ips": [each for each in addresses if each], "mac": mac}
        own |= {"default": True, "dns": {}}
    listed = [own, *(entry(each) for each in joined if each.result is not None)]
    return msgspec.json.format(msgspec.json.encode(listed), indent=4).decode()


def entry(joined: Attachment) -> Json:
    """The entry of one network, from its plugins' result."""
    result = joined.result or {}
    interfaces = [each if isinstance(each, dict) else {} for each in _list(result.get("interfaces"))]
    ours = [
        place
        for place, each in enumerate(interfaces)
        if each.get("sandbox") and each.get("name") == joined.selection.interface
    ]
    found: Json = {"name": joined.selection.network, "interface": joined.selection.interface}
    addresses = [text for each in _list(result.get("ips")) if (text := _address(each, ours))]
    if addresses:
        found["ips"] = addresses[:_MAX_ADDRESSES]
    macs = [interfaces[place].get("mac") for place in ours]
    if macs and isinstance(macs[0], str) and len(macs[0]) < 64:
        found["mac"] = macs[0].lower()
    dns = result.get("dns")
    found["dns"] = dns if isinstance(dns, dict) and len(msgspec.json.encode(dns)) < 4096 else {}
    return found


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _address(entry: object, ours: list[int]) -> str:
    if not isinstance(entry, dict) or entry.get("interface") not in (None, *ours):
        return ""
    try:
        return str(ipaddress.ip_interface(str(entry.get("address"))).ip)
    except ValueError:
        return ""
