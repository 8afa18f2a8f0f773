"""The bridge, and an interface's port on it: creates, configures and checks them."""

import errno
from contextlib import ExitStack
from pathlib import Path

from cni import desired_attachment, errors
from cni.desired_attachment import DesiredAttachment
from cni.errors import CniError
from cni.host import HostResources
from cni.rollback import log_errors
from kit.netlink import route
from kit.netlink.transport import Message, NetlinkRefusal

NAME_LIMIT = 15


def ensure_bridge(
    one: route.RtnetlinkSocket, resources: HostResources, wanted: DesiredAttachment, undo: ExitStack
) -> route.Link:
    """The bridge, up; a newly created one is removed by `undo`. Raises CniError, OSError."""
    link = one.link(wanted.bridge)
    if link is None:
        with resources.bridges.lock:
            link = _make(one, resources, wanted, undo)
    if link.kind != "bridge":
        raise CniError(errors.CONFIG, f"$.bridge: {wanted.bridge} is not a bridge but {link.kind or 'another device'}")
    if wanted.vlans and not link.vlan_filtering:
        raise CniError(
            errors.CONFIG,
            f"$.vlan: {wanted.bridge} has VLAN filtering disabled; enable it with "
            f"`ip link set {wanted.bridge} type bridge vlan_filtering 1`",
        )
    flags = (0 if link.up else route.IFF_UP) | _promiscuity(link, wanted)
    if flags:
        one.do(route.set_link(index=link.index, flags=flags, mask=flags))
    return link


def _promiscuity(link: route.Link, wanted: DesiredAttachment) -> int:
    return route.IFF_PROMISC if wanted.promiscuous and not link.flags & route.IFF_PROMISC else 0


def _make(
    one: route.RtnetlinkSocket, resources: HostResources, wanted: DesiredAttachment, undo: ExitStack
) -> route.Link:
    try:
        one.do(route.new_bridge(wanted.bridge, desired_attachment.random_mac(), wanted.mtu, wanted.vlans))
        undo.callback(log_errors, drop_bridge, resources, wanted.bridge)
        _own_routes(wanted.bridge)
    except NetlinkRefusal as refusal:
        if refusal.errno == errno.EOPNOTSUPP and wanted.vlans:
            raise CniError(errors.CONFIG, "$.vlan: this node's kernel does not support bridge VLAN filtering") from None
        if refusal.errno != errno.EEXIST:
            raise
    link = one.link(wanted.bridge)
    if link is None:
        raise CniError(errors.KERNEL, f"the bridge {wanted.bridge} was created and has disappeared")
    return link


def _own_routes(bridge: str) -> None:
    """Do not accept routes from router advertisements, which containers could send."""
    switch = Path(f"/proc/sys/net/ipv6/conf/{bridge}/accept_ra")
    if switch.exists():
        switch.write_text("0")


def drop_bridge(resources: HostResources, name: str) -> None:
    """Remove a bridge that a failed ADD created, unless it is in use."""
    with resources.bridges.lock, resources.routes.lend() as one:
        link = one.link(name)
        if link is None or not resources.bridges.alone(name) or any(each.master == link.index for each in one.links()):
            return
        one.do(route.del_link(index=link.index))


def attach(one: route.RtnetlinkSocket, wanted: DesiredAttachment, bridge: route.Link, alias: str) -> route.Link:
    """Attach the interface to the bridge, and set it up after its options. Returns the updated bridge."""
    ask = route.get_link(index=bridge.index)
    if not (wanted.vlans or wanted.hairpin or wanted.isolated):
        up = route.IFF_UP
        join = route.set_link(wanted.outside, master=bridge.index, alias=alias, flags=up, mask=up)
        return route.read_link(one.do(join, ask)[0])
    join = route.set_link(wanted.outside, master=bridge.index, alias=alias)
    link = route.read_link(one.do(join, route.get_link(wanted.outside))[0])
    if wanted.hairpin or wanted.isolated:
        one.do(route.set_port(link.index, wanted.hairpin, wanted.isolated))
    if wanted.vlans:
        _join_vlans(one, wanted, link.index)
    up_now = route.set_link(index=link.index, flags=route.IFF_UP, mask=route.IFF_UP)
    return route.read_link(one.do(up_now, ask)[0])


def _join_vlans(one: route.RtnetlinkSocket, wanted: DesiredAttachment, index: int) -> None:
    default = one.vlans(index).ids
    messages: list[Message] = [route.add_vlans(index, wanted.native, wanted.tagged)]
    if not wanted.keep_default_vlan:
        # The bridge's default VLAN is 1 unless configured otherwise.
        messages += [
            route.del_vlan(index, each) for each in default if each != wanted.native and each not in wanted.tagged
        ]
    one.do(*messages)


def gateway_device(one: route.RtnetlinkSocket, wanted: DesiredAttachment, bridge: route.Link) -> route.Link:
    """The device with the gateway's address: the bridge, or a VLAN device on it."""
    if not wanted.native:
        return bridge
    name = f"{wanted.bridge}.{wanted.native}"
    if len(name) > NAME_LIMIT:
        raise CniError(
            errors.CONFIG, f"$.isGateway: the VLAN's device {name} would have a name of over {NAME_LIMIT} bytes"
        )
    one.do(route.add_vlans(bridge.index, 0, [wanted.native], on_bridge=True))
    try:
        one.do(route.new_vlan(name, bridge.index, wanted.native))
    except NetlinkRefusal as refusal:
        if refusal.errno != errno.EEXIST:
            raise
    link = one.link(name)
    if link is None or link.kind != "vlan":
        raise CniError(errors.KERNEL, f"{name} is not a VLAN device")
    return link


def faults(one: route.RtnetlinkSocket, wanted: DesiredAttachment) -> list[str]:
    """Differences from the state after ADD, on the host."""
    bridge, link = one.link(wanted.bridge), one.link(wanted.outside)
    if bridge is None or bridge.kind != "bridge":
        return [f"there is no bridge {wanted.bridge}"]
    if link is None:
        return [f"{wanted.outside} does not exist"]
    found = []
    if link.master != bridge.index:
        found.append(f"{wanted.outside} is not a port of {wanted.bridge}")
    if not link.up:
        found.append(f"{wanted.outside} is down")
    if wanted.promiscuous and not bridge.flags & route.IFF_PROMISC:
        found.append(f"{wanted.bridge} is not promiscuous")
    for name, expected, actual in (
        ("hairpinMode", wanted.hairpin, link.hairpin),
        ("portIsolation", wanted.isolated, link.isolated),
    ):
        if expected and actual is False:
            found.append(f"{wanted.outside} has lost its {name}")
    if wanted.vlans:
        found += _vlan_faults(wanted, one.vlans(link.index).ids)
    return found


def _vlan_faults(wanted: DesiredAttachment, ids: dict[int, int]) -> list[str]:
    found = []
    if wanted.native and not ids.get(wanted.native, 0) & route.VLAN_PVID:
        found.append(f"{wanted.outside} is not in VLAN {wanted.native}")
    if missing := sorted(wanted.tagged - set(ids)):
        found.append(f"{wanted.outside} is not in the VLANs {', '.join(map(str, missing))}")
    if not wanted.keep_default_vlan and (extra := sorted(set(ids) - wanted.tagged - {wanted.native})):
        found.append(f"{wanted.outside} is also in the VLANs {', '.join(map(str, extra))}")
    return found
