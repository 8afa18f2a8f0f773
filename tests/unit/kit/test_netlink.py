"""Packing and parsing of netlink messages; requests to the kernel in this namespace."""

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import netlink


def test_attributes_survive_packing():
    packed = netlink._attribute(3, b"eth0\0") + netlink._attribute(4, struct.pack("=I", 1500))
    assert dict(netlink._attributes(packed)) == {3: b"eth0\0", 4: struct.pack("=I", 1500)}
    assert len(packed) % 4 == 0


@given(st.binary(max_size=200))
def test_damaged_messages_terminate_parsing(data):
    list(netlink._attributes(data))
    list(netlink._messages(data, 1))


def test_messages_with_other_sequence_numbers_are_skipped():
    mine = struct.pack("=IHHII", 20, 16, 0, 7, 0) + b"abcd"
    other = struct.pack("=IHHII", 20, 16, 0, 8, 0) + b"efgh"
    assert list(netlink._messages(other + mine, 7)) == [(16, b"abcd")]


def test_loopback_of_this_namespace():
    with netlink.Netlink() as route:
        link = route.links()["lo"]
        assert link.index == socket.if_nametoindex("lo") and link.master == 0
        addresses = {address.interface for address in route.addresses() if address.index == link.index}
    assert not link.up or ipaddress.ip_interface("127.0.0.1/8") in addresses


def test_refused_request_raises_oserror_with_kernel_errno():
    with netlink.Netlink() as route, pytest.raises(OSError) as caught:
        route.change_link(2**30, mtu=1500)
    assert caught.value.errno in (1, 19)  # EPERM for a plain user, else ENODEV


@pytest.mark.parametrize("text", ["", "52:54", "52:54:00:00:00:00:00"])
def test_invalid_mac_address_is_refused(text):
    with pytest.raises(ValueError, match="Ethernet"):
        netlink._mac(text)
