"""A pod's network namespace: what is in it, what should be, and the steps from one to the other."""

import contextlib
import errno
import ipaddress
import pathlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from api import names
from api.errors import NetworkError
from handler.pod_network import nftables
from kit import netlink
from kit.netlink import Address, Link, Netlink, Route

_SYSCTLS = pathlib.Path("/proc/sys")
BRIDGE, TAP = "k6t-", "tap"
"""How the names of our devices begin. Nothing else in a pod's namespace has such a name."""
_OPTIONAL = ("net/ipv6/", "net/bridge/")
"""Sysctls of parts that a kernel may not have."""


@dataclass(frozen=True)
class CurrentState:
    """What is in the namespace now."""

    links: dict[str, Link]
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)

    def uplink(self, others: Iterable[str] = ()) -> Link:
        """The pod's own interface: eth0, or else the first device with a global address that is none of the others,
        those of secondary networks. Raises NetworkError."""
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

    def of(self, link: Link) -> tuple[netlink.Interface, ...]:
        """The global addresses of a device that somebody gave it for good."""
        return tuple(
            address.interface
            for address in self.addresses
            if address.index == link.index and address.scope == 0 and address.permanent
        )

    def has(self, name: str, interface: netlink.Interface) -> bool:
        """Whether a device has an address."""
        link = self.links.get(name)
        return link is not None and any(
            address.interface == interface for address in self.addresses if address.index == link.index
        )


@dataclass(frozen=True)
class BridgedUplink:
    """The pod's interface under a bridge: it carries frames, and has no identity of its own left."""

    name: str
    mac: str


@dataclass(frozen=True)
class InterfaceDevices:
    """What one interface of the VM needs in the namespace: its bridge and its tap."""

    bridge: str
    bridge_mac: str
    tap: str
    mtu: int
    multi_queue: bool = False
    addresses: tuple[netlink.Interface, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    """Of its bridge and tap; set before these come up."""
    uplink: BridgedUplink | None = None
    guest: ipaddress.IPv4Address | None = None
    """An address that is to be known as the bridge's neighbour."""


@dataclass(frozen=True)
class DesiredState:
    """What should be in the namespace."""

    devices: tuple[InterfaceDevices, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    """Of the whole namespace."""
    tables: tuple[nftables.NftTable, ...] = ()
    kept: frozenset[str] = frozenset()
    """Devices of ours that nobody wants any more and somebody still uses."""
    owner: tuple[int, int] = (names.LAUNCHER_UID, names.LAUNCHER_UID)
    """User and group that may open the taps, by our names for them: a pod may have a user namespace."""


class NetnsStep(NamedTuple):
    """One change."""

    verb: str
    device: str = ""
    value: str = ""

    def __str__(self) -> str:
        return " ".join(word for word in self if word)


Perform = Callable[[Netlink, DesiredState, NetnsStep], None]


def observe(route: Netlink) -> CurrentState:
    """What is in the calling thread's network namespace."""
    links = route.links()
    return CurrentState(links, tuple(route.addresses()), tuple(route.routes()))


def with_sysctls(current: CurrentState, desired: DesiredState) -> CurrentState:
    """The same, with the present values of all the sysctls that matter."""
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
    """The sysctl that takes IPv6 from a device, with all its addresses."""
    return f"net/ipv6/conf/{device}/disable_ipv6"


def difference(current: CurrentState, desired: DesiredState) -> list[NetnsStep]:
    """The steps from one to the other, in order; empty when there is nothing to do. Pure.

    Whether the rules are in place, the kernel has to be asked (`nftables.in_place`): without a bridge they cannot be.
    They come before everything that they guard, and after what they no longer guard is gone.
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
        # Those of a device that is still to be made do not exist yet; without IPv6 in the kernel there are none at all.
        return no_ipv6("lo") in current.sysctls
    return not key.startswith(_OPTIONAL)


def perform(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    """Does one step, in the calling thread's network namespace. Raises OSError, NetworkError."""
    _VERBS[step.verb](route, desired, step)


def _bridge(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    wanted = _devices(desired, step.device)
    route.add_bridge(wanted.bridge, wanted.bridge_mac, wanted.mtu)
    with contextlib.suppress(OSError):
        netlink.leaves_checksums(wanted.bridge, False)


def _tap(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    netlink.add_tap(step.device, *desired.owner, _devices(desired, step.device).multi_queue)


def _sysctl(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    (_SYSCTLS / step.value).write_text(_wanted(desired)[step.value])


def _rules(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    nftables.apply(desired.tables)


def _empty(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    try:
        route.delete_address(route.links()[step.device].index, ipaddress.ip_interface(step.value))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:  # a second address of a subnet goes with the first
            raise


def _mac(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    link = route.links()[step.device]
    try:
        route.change_link(link.index, mac=step.value)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        route.change_link(link.index, up=False)  # a driver that changes it only while it is down
        route.change_link(link.index, mac=step.value)


def _join(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    wanted = _devices(desired, step.device)
    links = route.links()
    mtu = wanted.mtu if step.device == wanted.tap else None
    route.change_link(links[step.device].index, up=True, mtu=mtu, master=links[wanted.bridge].index)


def _up(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    route.change_link(route.links()[step.device].index, up=True, mtu=_devices(desired, step.device).mtu)


def _address(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    route.add_address(route.links()[step.device].index, ipaddress.ip_interface(step.value))


def _neighbour(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    route.add_link_route(route.links()[step.device].index, ipaddress.IPv4Address(step.value))


def _delete(route: Netlink, desired: DesiredState, step: NetnsStep) -> None:
    link = route.links().get(step.device)
    if link is not None:
        route.delete_link(link.index)


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
