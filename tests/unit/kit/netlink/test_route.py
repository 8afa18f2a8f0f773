"""rtnetlink messages: written ones, and those of a kernel (6.x), recorded."""

import contextlib
import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.netlink import route
from kit.netlink.route import Address, Link, NewRoute, Route, RtnetlinkSocket

BRIDGE = bytes.fromhex(
    "00000100020000000310000000000000080003006272300008000d00e803000008000400780500000a0001000200000000010000"
    "240012000b00010062726964676500001400020008000500000000000500070000000000"
)
"""Attributes of a device that are not read are left out."""
PORT = bytes.fromhex(
    "00000100040000000210000000000000070003007630000008000d00e8030000080004007805000008000a00020000000a001400"
    "6e657420610000000a0001000200000000020000300012000900010076657468000000000b000400627269646765000014000500"
    "05000400010000000500210001000000"
)
ADDRESSES = {
    "021880fe01000000080001007f000001080002007f000001070003006c6f00000800080080000000": Address(
        1, ipaddress.ip_interface("127.0.0.1/24"), 254, 0x80
    ),
    "0218800002000000080001000a010105080002000a010105080003006272300008000800800000001400"
    "0600ffffffffffffffff2581050025810500": Address(2, ipaddress.ip_interface("10.1.1.5/24"), 0, 0x80),
    "0a4082000200000014000100fd00000000000000000000000000000514000600ffffffffffffffff3481050034810500"
    "0800080082000000": (Address(2, ipaddress.ip_interface("fd00::5/64"), 0, 0x82)),
}
ROUTES = {
    "02100000fc0300011000000008000f002c010000080001000a080000080005000a0101080800040002000000": Route(
        ipaddress.ip_network("10.8.0.0/16"), ipaddress.ip_address("10.1.1.8"), 2, 0, 3, 300
    ),
    "02180000fe02fd011000000008000f00fe000000080001000a010100080007000a0101050800040002000000": Route(
        ipaddress.ip_network("10.1.1.0/24"), None, 2, 0, 2, 254
    ),
    "02100000fe0300011000000008000f00fe000000080001000a0900000800060064000000080005000a0101070800040002000000": Route(
        ipaddress.ip_network("10.9.0.0/16"), ipaddress.ip_address("10.1.1.7"), 2, 100, 3, 254
    ),
    "02200000ff02fe020000000008000f00ff000000080001000a010105080007000a0101050800040002000000": None,
    "0a400000fe0200011000000008000f00fe00000014000100fd00000000000000000000000000000008000600000100000800040002000000"
    "24000c0000000000000000000000000000000000000000000000000000000000000000000500140000000000": Route(
        ipaddress.ip_network("fd00::/64"), None, 2, 256, 2, 254
    ),
    "0a080000ff0200051000000008000f00ff00000014000100ff000000000000000000000000000000080006000001000008000400"
    "02000000": None,
}


def test_vlans_are_packed_as_ranges() -> None:
    _, _, body = route.add_vlans(7, 93, [1, 2, 3, 9])
    infos = [struct.pack("=HH", flags, vlan) for flags, vlan in ((6, 93), (8, 1), (16, 3), (0, 9))]
    assert all(each in body for each in infos) and struct.pack("=HH", 0, 2) not in body[40:]


def test_recorded_bridge_and_its_port() -> None:
    link = route.read_link(BRIDGE)
    assert link == Link(2, "br0", "02:00:00:00:00:01", 1400, 4099, 0, "bridge", txqlen=1000, vlan_filtering=False)
    assert link.up
    port = route.read_link(PORT)
    assert port == Link(4, "v0", "02:00:00:00:00:02", 1400, 4098, 2, "veth", "net a", 1000, hairpin=True, isolated=True)
    assert not port.up


@pytest.mark.parametrize("recorded", ADDRESSES)
def test_recorded_addresses(recorded: str) -> None:
    address = route.read_address(bytes.fromhex(recorded))
    assert address == ADDRESSES[recorded] and address.permanent


@pytest.mark.parametrize("recorded", ROUTES)
def test_recorded_routes(recorded: str) -> None:
    assert route.read_route(bytes.fromhex(recorded)) == ROUTES[recorded]


@given(st.binary(min_size=16, max_size=200))
def test_damaged_links_are_parsed_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError, struct.error):
        route.read_link(data)


def test_address_is_written_as_it_is_read() -> None:
    for interface in map(ipaddress.ip_interface, ("10.1.1.5/24", "fd00::5/64")):
        _, _, body = route.add_address(7, interface, dad=False)
        found = route.read_address(body)
        assert found is not None and (found.index, found.interface) == (7, interface)


def test_broadcast_address_is_optional() -> None:
    interface = ipaddress.ip_interface("10.1.1.5/24")
    broadcast = ipaddress.ip_address("10.1.1.255").packed
    assert broadcast in route.add_address(7, interface, dad=False)[2]
    assert broadcast not in route.add_address(7, interface, dad=False, broadcast=False)[2]


def test_route_is_written_as_it_is_read() -> None:
    destination, gateway = ipaddress.ip_network("10.9.0.0/16"), ipaddress.ip_address("10.1.1.7")
    _, flags, body = route.add_route(7, NewRoute(destination, gateway, priority=5))
    assert route.read_route(body) == Route(destination, gateway, 7, 5) and flags & 0x200 and not flags & 0x100
    _, flags, _ = route.add_route(7, NewRoute(destination), replace=True)
    assert flags & 0x100 and not flags & 0x200, "replaces an equal one"


def test_quiet_bridge_has_no_stp_and_is_down() -> None:
    _, _, body = route.new_quiet_bridge("k6t-eth0", "02:00:00:00:00:01", 1450)
    link = route.read_link(body)
    assert (link.name, link.mac, link.mtu, link.kind, link.up) == (
        "k6t-eth0", "02:00:00:00:00:01", 1450, "bridge", False
    )  # fmt: skip
    assert bytes.fromhex("08000500000000000500170000000000") in body, "STP, multicast snooping"
    assert route.read_link(route.new_bridge("br1", "02:00:00:00:00:01", 0, True)[2]).vlan_filtering is True


def test_loopback_of_this_namespace() -> None:
    with RtnetlinkSocket() as one:
        link = one.link("lo")
        assert link is not None and link.index == socket.if_nametoindex("lo") and link.master == 0
        assert link.name in {each.name for each in one.links()}
        addresses = {address.interface for address in one.addresses(link.index)}
        assert one.link("no-such-device") is None
    assert not link.up or ipaddress.ip_interface("127.0.0.1/8") in addresses


def test_refused_request_raises_oserror_with_kernel_errno() -> None:
    with RtnetlinkSocket() as one, pytest.raises(OSError) as caught:
        one.do(route.set_link(index=2**30, mtu=1500))
    assert caught.value.errno in (1, 19)  # EPERM for a plain user, else ENODEV


@pytest.mark.parametrize("text", ["", "52:54", "52:54:00:00:00:00:00"])
def test_invalid_mac_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Ethernet"):
        route.mac_bytes(text)
