"""cnv-bridge: joins a container to a bridge of the host by a veth pair."""

import errno
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec

from cni import addresses, errors, guard, host, ipam, masquerade, port, route, spec
from cni import wish as wishes
from cni.caller import Call
from cni.errors import CniError
from cni.host import Host
from cni.netlink import Refusal
from cni.spec import BridgeConf, Result
from cni.undo import quietly
from cni.wish import Wish


def add(call: Call, hands: Host) -> bytes:
    """ADD. Undoes itself if it fails. Raises CniError, OSError."""
    conf = spec.decode(call.stdin, BridgeConf)
    wish = wishes.of(conf, call)
    with ExitStack() as undo, hands.bridges.using(wish.bridge), hands.routes.lend() as one:
        bridge = port.ensure_bridge(one, hands, wish, undo)
        inside_mac = wish.mac or wishes.random_mac()
        outside_mac = wishes.port_mac()
        _make_pair(one, wish, call, bridge, inside_mac, outside_mac)
        undo.callback(quietly, hands.remove, wish.outside)
        if wish.guard:
            _guard(hands, wish, inside_mac)
            undo.callback(quietly, _with_nft, hands, guard.remove, wish.outside)
        bridge = port.attach(one, wish, bridge, host.alias(wish.network, call.container, call.interface))
        found = Result(cniVersion=wish.version)
        if wish.ipam:
            found = _layer3(undo, one, hands, wish, bridge, call)
        result = _result(conf, wish, call, found, bridge, inside_mac, outside_mac)
        undo.pop_all()
    return result.encode()


def _make_pair(one: route.Route, wish: Wish, call: Call, bridge: route.Link, mac: str, outside_mac: str) -> None:
    mtu = wish.mtu or bridge.mtu
    pair = route.Veth(wish.outside, outside_mac, call.interface, mac, call.netns, mtu, wish.up)
    try:
        one.do(route.new_veth(pair))
    except Refusal as refusal:
        if refusal.errno != errno.EEXIST:
            raise
        there = one.link(wish.outside) is not None
        what = "this container is attached to this network by" if there else "the container already has"
        raise CniError(errors.KERNEL, f"{what} {call.interface}: DEL it first") from None


def _guard(hands: Host, wish: Wish, mac: str) -> None:
    try:
        with hands.nft.lend() as socket:
            guard.add(socket, wish.outside, mac)
    except OSError as error:
        raise CniError(errors.KERNEL, f"macspoofchk: nftables refuses its rules: {error}") from None


def _layer3(undo: ExitStack, one: route.Route, hands: Host, wish: Wish, bridge: route.Link, call: Call) -> Result:
    undo.callback(quietly, ipam.run, wish.ipam, "DEL", call, hands.own)
    found = addresses.complete(ipam.add(wish.ipam, call, wish.version, hands.own), wish)

    def body() -> None:
        own = route.Route()
        try:
            addresses.configure(own, call.interface, found, wish.dad)
        finally:
            own.close()

    if wish.gateway:
        device = port.gateway_device(one, wish, bridge)
        for each in addresses.serve(one, device, found, wish.force_address):
            undo.callback(quietly, hands_address, hands, device.index, each)
    host.inside(call.netns, body)
    if wish.masquerade:
        with hands.nft.lend() as socket:
            masquerade.add(socket, wish.outside, addresses.interfaces(found))
        undo.callback(quietly, _with_nft, hands, masquerade.remove, wish.outside)
    return found


def hands_address(hands: Host, index: int, address: route.Interface) -> None:
    """Takes a gateway's address back from its device."""
    with hands.routes.lend() as one:
        one.do(route.del_address(index, address))


def _result(
    conf: BridgeConf, wish: Wish, call: Call, found: Result, bridge: route.Link, mac: str, outside_mac: str
) -> Result:
    previous = Result(cniVersion=wish.version)
    if conf.prevResult is not None:
        previous = spec.result(conf.prevResult, wish.version, errors.CONFIG, "$.prevResult")
    inside: dict[str, Any] = {"name": call.interface, "mac": mac, "sandbox": call.netns_path}
    if wish.version == "1.1.0":
        inside["mtu"] = wish.mtu or bridge.mtu
    interfaces = [*previous.interfaces, {"name": wish.bridge, "mac": bridge.mac}]
    interfaces += [{"name": wish.outside, "mac": outside_mac}, inside]
    mine = addresses.owned(found, len(interfaces) - 1)
    dns = next((each for each in (conf.dns, found.dns, previous.dns) if each and each != spec.Dns()), spec.Dns())
    return Result(
        cniVersion=wish.version,
        interfaces=interfaces,
        ips=[*previous.ips, *mine.ips],
        routes=[*previous.routes, *mine.routes],
        dns=dns,
    )


def delete(call: Call, hands: Host) -> bytes:
    """DEL: takes away what is there, and is content if nothing is. Raises CniError, OSError."""
    conf = _lenient(call)
    if conf is None:
        return b""
    outside = host.host_name(conf.name or "", call.container, call.interface)
    try:
        kind = wishes.ipam_type(conf)
    except CniError:  # ADD refused it too
        kind = ""
    if kind in ipam.BY_INTERFACE:
        try:
            ipam.run(kind, "DEL", call, hands.own)
        finally:
            detach(hands, outside)
        return b""
    # Others' addresses are free at once, perhaps for somebody else: not while an interface has them.
    detach(hands, outside)
    if kind:
        ipam.run(kind, "DEL", call, hands.own)
    return b""


def detach(hands: Host, outside: str) -> None:
    """Removes an interface on the host and all that is about it. Raises OSError."""
    hands.remove(outside)
    with hands.nft.lend() as socket:
        guard.remove(socket, outside)
        masquerade.remove(socket, outside)


def _lenient(call: Call) -> BridgeConf | None:
    """The configuration, or as much of it as DEL needs: one that ADD refused must not hold a pod up for ever."""
    try:
        return spec.decode(call.stdin, BridgeConf)
    except CniError as error:
        if error.code != errors.CONFIG:
            raise
    raw = msgspec.json.decode(call.stdin)
    if not isinstance(raw, dict):
        return None
    ipam_conf = raw.get("ipam")
    kept = {"cniVersion": raw.get("cniVersion"), "name": raw.get("name")}
    kept["ipam"] = ipam_conf if isinstance(ipam_conf, dict) else None
    try:
        return spec.decode(msgspec.json.encode(kept), BridgeConf)
    except CniError:
        return None  # without a name ADD made nothing


def check(call: Call, hands: Host) -> bytes:
    """CHECK: everything is as ADD left it. Raises CniError (101 with all that differs)."""
    conf = spec.decode(call.stdin, BridgeConf)
    wish = wishes.of(conf, call)
    if conf.prevResult is None:
        raise CniError(errors.CONFIG, "$.prevResult: CHECK needs it")
    result = spec.result(conf.prevResult, wish.version, errors.CONFIG, "$.prevResult")
    if wish.ipam:
        ipam.run(wish.ipam, "CHECK", call, hands.own)
    mac = next(
        (str(i.get("mac", "")) for i in result.interfaces if i["name"] == call.interface and i.get("sandbox")), ""
    )
    with hands.routes.lend() as one:
        found = port.faults(one, wish)
    found += host.inside(call.netns, lambda: _inside_faults(call, wish, result, mac))
    with hands.nft.lend() as socket:
        if wish.guard and not guard.allows(socket, wish.outside, mac):
            found.append(f"macspoofchk does not guard {wish.outside} for {mac}")
        mine = [ip for ip in addresses.interfaces(result) if wish.ipam]
        if wish.masquerade and mine and not masquerade.active(socket, wish.outside, mine):
            found.append(f"the addresses behind {wish.outside} are not masqueraded")
    if found:
        raise CniError(errors.DIFFERS, "; ".join(found))
    return b""


def _inside_faults(call: Call, wish: Wish, result: Result, mac: str) -> list[str]:
    one = route.Route()
    try:
        link = one.link(call.interface)
        if link is None:
            return [f"{call.interface} is not in the container"]
        found = []
        if mac and link.mac != mac.lower():
            found.append(f"{call.interface} has the MAC {link.mac} instead of {mac}")
        if wish.up and not link.up:
            found.append(f"{call.interface} is down")
        if wish.ipam:
            found += addresses.faults(one, call.interface, result.ips, result.routes)
        return found
    finally:
        one.close()


def collect(call: Call, hands: Host) -> bytes:
    """GC: removes the network's attachments that the runtime does not list. Raises CniError, OSError."""
    conf = spec.decode(call.stdin, BridgeConf)
    network = conf.name or ""
    valid = {host.host_name(network, each.containerID, each.ifname) for each in conf.valid or []}
    with hands.nft.lend() as socket:
        guarded = guard.guarded(socket)
    with hands.routes.lend() as one:
        links = one.links()
    doomed = {link.name for link in links if host.belongs(link, network)} - valid
    # A guard whose interface has gone is nobody's: interfaces are made before their guards.
    orphans = {name for name in guarded if name not in {link.name for link in links}}
    failed = []
    for name in sorted(doomed | orphans):
        try:
            detach(hands, name)
        except OSError as error:
            failed.append(f"{name}: {error}")
    if kind := wishes.ipam_type(conf):
        ipam.run(kind, "GC", call, hands.own)
    if failed:
        raise CniError(errors.KERNEL, f"not removed: {'; '.join(failed)}")
    return b""


def status(call: Call, hands: Host) -> bytes:
    """STATUS: an ADD would work now. Raises CniError (50)."""
    conf = spec.decode(call.stdin, BridgeConf)
    try:
        with hands.routes.lend() as one:
            one.link("lo")
        if conf.macspoofchk or conf.ipMasq:
            with hands.nft.lend() as socket:
                guard.guarded(socket)
    except OSError as error:
        raise CniError(errors.UNAVAILABLE, f"the kernel does not serve us: {error}") from None
    if kind := wishes.ipam_type(conf):
        ipam.run(kind, "STATUS", call, hands.own)
    return b""


def _with_nft(hands: Host, work: Callable[..., None], name: str) -> None:
    with hands.nft.lend() as socket:
        work(socket, name)
