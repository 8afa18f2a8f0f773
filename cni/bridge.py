"""cnv-bridge: connects a container to a host bridge by a veth pair."""

import errno
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from cni import addresses, desired_attachment, errors, host, ipam, mac_filter, masquerade, port, spec
from cni.desired_attachment import DesiredAttachment
from cni.errors import CniError
from cni.host import HostResources
from cni.invocation import Invocation
from cni.rollback import log_errors
from cni.spec import BridgeConf, CniResult
from kit.netlink import route
from kit.netlink.transport import NetlinkRefusal


def add(call: Invocation, resources: HostResources) -> bytes:
    """ADD; rolled back on failure. Raises CniError, OSError."""
    conf = spec.decode(call.stdin, BridgeConf)
    desired = desired_attachment.desired_attachment(conf, call)
    with ExitStack() as undo, resources.bridges.using(desired.bridge), resources.routes.lend() as one:
        bridge = port.ensure_bridge(one, resources, desired, undo)
        inside_mac = desired.mac or desired_attachment.random_mac()
        outside_mac = desired_attachment.port_mac()
        _make_pair(one, desired, call, bridge, inside_mac, outside_mac)
        undo.callback(log_errors, resources.remove, desired.outside)
        if desired.guard:
            _filter_mac(resources, desired, inside_mac)
            undo.callback(log_errors, _with_nft, resources, mac_filter.remove, desired.outside)
        bridge = port.attach(one, desired, bridge, host.alias(desired.network, call.container, call.interface))
        found = CniResult(cniVersion=desired.version)
        if desired.ipam:
            found = _layer3(undo, one, resources, desired, bridge, call)
        result = _result(conf, desired, call, found, bridge, inside_mac, outside_mac)
        undo.pop_all()
    return result.encode()


def _make_pair(
    one: route.RtnetlinkSocket,
    desired: DesiredAttachment,
    call: Invocation,
    bridge: route.Link,
    mac: str,
    outside_mac: str,
) -> None:
    mtu = desired.mtu or bridge.mtu
    pair = route.Veth(desired.outside, outside_mac, call.interface, mac, call.netns, mtu, desired.up)
    try:
        one.do(route.new_veth(pair))
    except NetlinkRefusal as refusal:
        if refusal.errno != errno.EEXIST:
            raise
        there = one.link(desired.outside) is not None
        what = "this container is attached to this network by" if there else "the container already has"
        raise CniError(errors.KERNEL, f"{what} {call.interface}: DEL it first") from None


def _filter_mac(resources: HostResources, desired: DesiredAttachment, mac: str) -> None:
    try:
        with resources.nft.lend() as socket:
            mac_filter.add(socket, desired.outside, mac)
    except OSError as error:
        raise CniError(errors.KERNEL, f"macspoofchk: the kernel rejected the nftables rules: {error}") from None


def _layer3(
    undo: ExitStack,
    one: route.RtnetlinkSocket,
    resources: HostResources,
    desired: DesiredAttachment,
    bridge: route.Link,
    call: Invocation,
) -> CniResult:
    undo.callback(log_errors, ipam.run, desired.ipam, "DEL", call, resources.own)
    found = addresses.complete(ipam.add(desired.ipam, call, desired.version, resources.own), desired)

    def body() -> None:
        own = route.RtnetlinkSocket()
        try:
            addresses.configure(own, call.interface, found, desired.dad)
        finally:
            own.close()

    if desired.gateway:
        device = port.gateway_device(one, desired, bridge)
        for each in addresses.serve(one, device, found, desired.force_address):
            undo.callback(log_errors, assigns_address, resources, device.index, each)
    host.run_in_netns(call.netns, body)
    if desired.masquerade:
        with resources.nft.lend() as socket:
            masquerade.add(socket, desired.outside, addresses.interfaces(found))
        undo.callback(log_errors, _with_nft, resources, masquerade.remove, desired.outside)
    return found


def assigns_address(resources: HostResources, index: int, address: route.Interface) -> None:
    """Remove a gateway address from its device (rollback)."""
    with resources.routes.lend() as one:
        one.do(route.del_address(index, address))


def _result(
    conf: BridgeConf,
    desired: DesiredAttachment,
    call: Invocation,
    found: CniResult,
    bridge: route.Link,
    mac: str,
    outside_mac: str,
) -> CniResult:
    previous = CniResult(cniVersion=desired.version)
    if conf.prevResult is not None:
        previous = spec.result(conf.prevResult, desired.version, errors.CONFIG, "$.prevResult")
    inside: dict[str, Any] = {"name": call.interface, "mac": mac, "sandbox": call.netns_path}
    if desired.version == "1.1.0":
        inside["mtu"] = desired.mtu or bridge.mtu
    interfaces = [*previous.interfaces, {"name": desired.bridge, "mac": bridge.mac}]
    interfaces += [{"name": desired.outside, "mac": outside_mac}, inside]
    mine = addresses.owned(found, len(interfaces) - 1)
    dns = next((each for each in (conf.dns, found.dns, previous.dns) if each and each != spec.Dns()), spec.Dns())
    return CniResult(
        cniVersion=desired.version,
        interfaces=interfaces,
        ips=[*previous.ips, *mine.ips],
        routes=[*previous.routes, *mine.routes],
        dns=dns,
    )


def delete(call: Invocation, resources: HostResources) -> bytes:
    """DEL: remove what exists; idempotent. Raises CniError, OSError."""
    conf = spec.decode_for_del(call.stdin, BridgeConf, {"ipam": dict})
    if conf is None:
        return b""
    outside = host.host_name(conf.name or "", call.container, call.interface)
    try:
        kind = desired_attachment.ipam_type(conf)
    except CniError:  # ADD refused it as well
        kind = ""
    if kind in ipam.BY_INTERFACE:
        try:
            ipam.run(kind, "DEL", call, resources.own)
        finally:
            detach(resources, outside)
        return b""
    # Other IPAM plugins free the address at once, so the interface must be removed first.
    detach(resources, outside)
    if kind:
        ipam.run(kind, "DEL", call, resources.own)
    return b""


def detach(resources: HostResources, outside: str) -> None:
    """Remove a host interface with its nftables rules. Raises OSError."""
    resources.remove(outside)
    with resources.nft.lend() as socket:
        mac_filter.remove(socket, outside)
        masquerade.remove(socket, outside)


def check(call: Invocation, resources: HostResources) -> bytes:
    """CHECK: everything is as ADD left it. Raises CniError (101 with all differences)."""
    conf = spec.decode(call.stdin, BridgeConf)
    desired = desired_attachment.desired_attachment(conf, call)
    if conf.prevResult is None:
        raise CniError(errors.CONFIG, "$.prevResult: CHECK needs it")
    result = spec.result(conf.prevResult, desired.version, errors.CONFIG, "$.prevResult")
    if desired.ipam:
        ipam.run(desired.ipam, "CHECK", call, resources.own)
    mac = next(
        (str(i.get("mac", "")) for i in result.interfaces if i["name"] == call.interface and i.get("sandbox")), ""
    )
    with resources.routes.lend() as one:
        found = port.faults(one, desired)
    found += host.run_in_netns(call.netns, lambda: _inside_faults(call, desired, result, mac))
    with resources.nft.lend() as socket:
        if desired.guard and not mac_filter.allows(socket, desired.outside, mac):
            found.append(f"macspoofchk has no rule on {desired.outside} for {mac}")
        mine = [ip for ip in addresses.interfaces(result) if desired.ipam]
        if desired.masquerade and mine and not masquerade.active(socket, desired.outside, mine):
            found.append(f"the addresses behind {desired.outside} are not masqueraded")
    if found:
        raise CniError(errors.DIFFERS, "; ".join(found))
    return b""


def _inside_faults(call: Invocation, desired: DesiredAttachment, result: CniResult, mac: str) -> list[str]:
    one = route.RtnetlinkSocket()
    try:
        link = one.link(call.interface)
        if link is None:
            return [f"{call.interface} is not in the container"]
        found = []
        if mac and link.mac != mac.lower():
            found.append(f"{call.interface} has the MAC {link.mac} instead of {mac}")
        if desired.up and not link.up:
            found.append(f"{call.interface} is down")
        if desired.ipam:
            found += addresses.faults(one, call.interface, result.ips, result.routes)
        return found
    finally:
        one.close()


def collect(call: Invocation, resources: HostResources) -> bytes:
    """GC: remove the network's attachments that are not in the runtime's list. Raises CniError, OSError."""
    conf = spec.decode(call.stdin, BridgeConf)
    network = conf.name or ""
    valid = {host.host_name(network, each.containerID, each.ifname) for each in conf.valid or []}
    with resources.nft.lend() as socket:
        guarded = mac_filter.guarded(socket)
    with resources.routes.lend() as one:
        links = one.links()
    doomed = {link.name for link in links if host.belongs(link, network)} - valid
    # A MAC filter without its interface is stale: interfaces are created before their filters.
    orphans = {name for name in guarded if name not in {link.name for link in links}}
    failed = []
    for name in sorted(doomed | orphans):
        try:
            detach(resources, name)
        except OSError as error:
            failed.append(f"{name}: {error}")
    if kind := desired_attachment.ipam_type(conf):
        ipam.run(kind, "GC", call, resources.own)
    if failed:
        raise CniError(errors.KERNEL, f"not removed: {'; '.join(failed)}")
    return b""


def status(call: Invocation, resources: HostResources) -> bytes:
    """STATUS: whether ADD can work. Raises CniError (50)."""
    conf = spec.decode(call.stdin, BridgeConf)
    try:
        with resources.routes.lend() as one:
            one.link("lo")
        if conf.macspoofchk or conf.ipMasq:
            with resources.nft.lend() as socket:
                mac_filter.guarded(socket)
    except OSError as error:
        raise CniError(errors.UNAVAILABLE, f"netlink is not available: {error}") from None
    if kind := desired_attachment.ipam_type(conf):
        ipam.run(kind, "STATUS", call, resources.own)
    return b""


def _with_nft(resources: HostResources, work: Callable[..., None], name: str) -> None:
    with resources.nft.lend() as socket:
        work(socket, name)
