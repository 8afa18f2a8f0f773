"""A pod's network namespace: its current state, its desired state, and the steps between them."""

import contextlib
import errno
import ipaddress
import os
import pathlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from api import names
from api.errors import NetworkError
from handler.pod_network import nftables
from kit.netlink import route as rtnetlink
from kit.netlink import tap
from kit.netlink.route import Address, Interface, Link, NewRoute, Route, RtnetlinkSocket
from kit.netlink.transport import Message

_SYSCTLS = pathlib.Path("/proc/sys")
BRIDGE, TAP = "k6t-", "tap"
"""Prefixes of the devices that the handler creates; no others in a pod's namespace have them."""
_OPTIONAL = ("net/ipv6/", "net/bridge/")
"""Sysctls that may be missing in the kernel."""


@dataclass(frozen=True)
class CurrentState:
    """The current state of the namespace."""

    links: dict[str, Link]
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)

    def uplink(self, others: Iterable[str] = ()) -> Link:
        """The pod's own interface: eth0, else the first device with a global address that is not among `others`, the
        secondary networks. Raises NetworkError."""
        with_address = {address.index for address in self.addresses if address.scope == 0}
        chosen = [
            link
            for link in self.links.values()
            if link.name not in {"lo", *others}
            and not link.name.startswith((BRIDGE, TAP))
            and link.index in with_address
        ]
        if not chosen:
            raise NetworkError("the pod has no interface with an address")
        return min(chosen, key=lambda link: (link.name != "eth0", link.index))

    def of(self, link: Link) -> tuple[Interface, ...]:
        """The permanent global addresses of a device."""
        return tuple(
            address.interface
            for address in self.addresses
            if address.index == link.index and address.scope == 0 and address.permanent
        )

    def has(self, name: str, interface: Interface) -> bool:
        """Whether a device has an address."""
        link = self.links.get(name)
        return link is not None and any(
            address.interface == interface for address in self.addresses if address.index == link.index
        )


@dataclass(frozen=True)
class BridgedUplink:
    """The pod's interface as a bridge port, stripped of its own addresses."""

    name: str
    mac: str


@dataclass(frozen=True)
class InterfaceDevices:
    """The bridge and tap of one interface of the VM."""

    bridge: str
    bridge_mac: str
    tap: str
    mtu: int
    multi_queue: bool = False
    addresses: tuple[Interface, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    """Of bridge and tap; set before they come up."""
    uplink: BridgedUplink | None = None
    guest: ipaddress.IPv4Address | None = None
    """An address reachable through the bridge as a link route."""


@dataclass(frozen=True)
class DesiredState:
    """The desired state of the namespace."""

    devices: tuple[InterfaceDevices, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    """Of the whole namespace."""
    tables: tuple[nftables.NftTable, ...] = ()
    kept: frozenset[str] = frozenset()
    """Devices of the handler that are no longer requested but still in use."""
    owner: tuple[int, int] = (names.LAUNCHER_UID, names.LAUNCHER_UID)
    """Owner and group of the taps, as host IDs: a pod may have a user namespace."""


class NetnsStep(NamedTuple):
    """One change of the namespace."""

    verb: str
    device: str = ""
    value: str = ""

    def __str__(self) -> str:
        return " ".join(word for word in self if word)


Perform = Callable[[RtnetlinkSocket, DesiredState, NetnsStep], None]


def observe(route: RtnetlinkSocket) -> CurrentState:
    """The current state of the calling thread's network namespace."""
    links = {link.name: link for link in route.links()}
    routes = tuple(each for each in route.routes() if each.table == rtnetlink.MAIN and each.index)
    return CurrentState(links, tuple(route.addresses()), routes)


def with_sysctls(current: CurrentState, desired: DesiredState) -> CurrentState:
    """`current` with the present values of all sysctls in `desired`."""
    found = {}
    for key in (*_wanted(desired), no_ipv6("lo")):
        with contextlib.suppress(OSError):
            found[key] = (_SYSCTLS / key).read_text().strip()
    return CurrentState(current.links, current.addresses, current.routes, found)


def _wanted(desired: DesiredState) -> dict[str, str]:
    wanted = dict(desired.sysctls)
    for devices in desired.devices:
        wanted |= devices.sysctls
        if devices.uplink is not None:
            wanted[no_ipv6(devices.uplink.name)] = "1"
    return wanted


def no_ipv6(device: str) -> str:
    """The sysctl that disables IPv6 on a device and removes its addresses."""
    return f"net/ipv6/conf/{device}/disable_ipv6"


def difference(current: CurrentState, desired: DesiredState) -> list[NetnsStep]:
    """The steps from current to desired state, in order; empty when equal. Pure.

    The kernel must be asked whether the rules are in place (`nftables.in_place`); without a bridge they cannot be. They
    are applied before the devices they filter are created, and after obsolete devices are deleted.
    """
    steps = [NetnsStep("delete", name) for name in sorted(_leftover(current, desired))]
    steps += [NetnsStep("sysctl", value=key) for key, value in desired.sysctls.items() if _wrong(current, key, value)]
    if any(devices.bridge not in current.links for devices in desired.devices):
        steps.append(NetnsStep("rules"))
    for devices in desired.devices:
        steps += _of_devices(current, devices)
    return steps


def _of_devices(current: CurrentState, wanted: InterfaceDevices) -> list[NetnsStep]:
    bridge, tap = current.links.get(wanted.bridge), current.links.get(wanted.tap)
    steps = [] if bridge else [NetnsStep("bridge", wanted.bridge)]
    steps += [] if tap else [NetnsStep("tap", wanted.tap)]
    steps += [NetnsStep("sysctl", value=key) for key, value in wanted.sysctls.items() if _wrong(current, key, value)]
    if wanted.uplink is not None:
        steps += _of_uplink(current, wanted.uplink, bridge)
    if bridge is None or not bridge.up or bridge.mtu != wanted.mtu:
        steps.append(NetnsStep("up", wanted.bridge))
    steps += [
        NetnsStep("address", wanted.bridge, str(interface))
        for interface in wanted.addresses
        if not current.has(wanted.bridge, interface)
    ]
    if wanted.guest is not None and not _knows(current, bridge, wanted.guest):
        steps.append(NetnsStep("neighbour", wanted.bridge, str(wanted.guest)))
    if tap is None or not tap.up or tap.mtu != wanted.mtu or (bridge and tap.master != bridge.index):
        steps.append(NetnsStep("join", wanted.tap))
    return steps


def _of_uplink(current: CurrentState, wanted: BridgedUplink, bridge: Link | None) -> list[NetnsStep]:
    uplink = current.links[wanted.name]
    key = no_ipv6(wanted.name)
    steps = [NetnsStep("sysctl", value=key)] if _wrong(current, key, "1") else []
    steps += [
        NetnsStep("empty", wanted.name, str(address.interface))
        for address in current.addresses
        if address.index == uplink.index and address.interface.version == 4
    ]
    if uplink.mac != wanted.mac:
        steps.append(NetnsStep("mac", wanted.name, wanted.mac))
    if bridge is None or uplink.master != bridge.index or not uplink.up:
        steps.append(NetnsStep("join", wanted.name))
    return steps


def _knows(current: CurrentState, bridge: Link | None, guest: ipaddress.IPv4Address) -> bool:
    return bridge is not None and any(
        route.index == bridge.index and route.destination == ipaddress.IPv4Network(guest) for route in current.routes
    )


def _leftover(current: CurrentState, desired: DesiredState) -> set[str]:
    wanted = {name for devices in desired.devices for name in (devices.bridge, devices.tap)}
    return {
        name
        for name, link in current.links.items()
        if (name.startswith(BRIDGE) and link.kind == "bridge") or (name.startswith(TAP) and link.kind == "tun")
        if name not in wanted and name not in desired.kept
    }


def _wrong(current: CurrentState, key: str, value: str) -> bool:
    if key in current.sysctls:
        return current.sysctls[key] != value
    if key.startswith("net/ipv6/"):
        # Those of a device not yet created do not exist; without IPv6 in the kernel none do.
        return no_ipv6("lo") in current.sysctls
    return not key.startswith(_OPTIONAL)


def perform(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    """Apply one step in the calling thread's network namespace. Raises OSError, NetworkError."""
    _VERBS[step.verb](route, desired, step)


def _bridge(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    wanted = _devices(desired, step.device)
    route.do(rtnetlink.new_quiet_bridge(wanted.bridge, wanted.bridge_mac, wanted.mtu))
    with contextlib.suppress(OSError):
        tap.leaves_checksums(wanted.bridge, False)


def _tap(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    tap.add_tap(step.device, *desired.owner, _devices(desired, step.device).multi_queue)


def _sysctl(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    (_SYSCTLS / step.value).write_text(_wanted(desired)[step.value])


def _rules(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    nftables.apply(desired.tables)


def _empty(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    try:
        route.do(rtnetlink.del_address(_link(route, step.device).index, ipaddress.ip_interface(step.value)))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:  # secondary addresses of a subnet go with the primary
            raise


def _mac(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    change = rtnetlink.set_link(step.device, mac=step.value)
    try:
        route.do(change)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # Some drivers change the MAC only while the device is down.
        route.do(rtnetlink.set_link(step.device, mask=rtnetlink.IFF_UP))
        route.do(change)


def _join(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    wanted = _devices(desired, step.device)
    mtu = wanted.mtu if step.device == wanted.tap else 0
    route.do(_up_with(step.device, mtu=mtu, master=_link(route, wanted.bridge).index))


def _up(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    route.do(_up_with(step.device, mtu=_devices(desired, step.device).mtu))


def _address(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    index = _link(route, step.device).index
    route.do(rtnetlink.add_address(index, ipaddress.ip_interface(step.value), dad=False, broadcast=False))


def _neighbour(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    guest = NewRoute(ipaddress.IPv4Network(step.value))
    route.do(rtnetlink.add_route(_link(route, step.device).index, guest, replace=True))


def _delete(route: RtnetlinkSocket, desired: DesiredState, step: NetnsStep) -> None:
    link = route.link(step.device)
    if link is not None:
        route.do(rtnetlink.del_link(index=link.index))


def _link(route: RtnetlinkSocket, name: str) -> Link:
    link = route.link(name)
    if link is None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
    return link


def _up_with(name: str, mtu: int = 0, master: int | None = None) -> Message:
    return rtnetlink.set_link(name, mtu=mtu, master=master, flags=rtnetlink.IFF_UP, mask=rtnetlink.IFF_UP)


def _devices(desired: DesiredState, name: str) -> InterfaceDevices:
    for devices in desired.devices:
        if name in (devices.bridge, devices.tap) or (devices.uplink and devices.uplink.name == name):
            return devices
    raise LookupError(name)


_VERBS: dict[str, Perform] = {
    "bridge": _bridge,
    "tap": _tap,
    "sysctl": _sysctl,
    "rules": _rules,
    "empty": _empty,
    "mac": _mac,
    "join": _join,
    "up": _up,
    "address": _address,
    "neighbour": _neighbour,
    "delete": _delete,
}
