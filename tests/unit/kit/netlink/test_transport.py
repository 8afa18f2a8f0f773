"""Packing and parsing of netlink messages; requests to the kernel in this namespace."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.netlink import transport


def test_attributes_survive_packing() -> None:
    packed = transport.attribute(3, b"eth0\0") + transport.attribute(4, struct.pack("=I", 1500))
    assert dict(transport.attributes(packed)) == {3: b"eth0\0", 4: struct.pack("=I", 1500)}
    assert len(packed) % 4 == 0


def test_flags_of_nested_attributes_are_not_part_of_the_type() -> None:
    packed = transport.nested(18, transport.text(1, "veth"))
    ((kind, inner),) = transport.attributes(packed)
    assert kind == 18 and transport.string(dict(transport.attributes(inner))[1]) == "veth"


@given(st.binary(max_size=200))
def test_damaged_messages_terminate_parsing(data: bytes) -> None:
    list(transport.attributes(data))
    list(transport._messages(data))


def test_answers_to_earlier_requests_are_skipped() -> None:
    """A recorded dump: a late answer, then one device and the end."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    netlink = transport.NetlinkSocket(socket.NETLINK_ROUTE)
    netlink.close()
    netlink._socket = ours
    late, mine = (transport.HEADER.pack(20, 16, 2, number, 0) for number in (0, 1))
    kernel.send(late + b"late" + mine + b"mine" + transport.HEADER.pack(20, transport.DONE, 2, 1, 0) + bytes(4))
    assert netlink.dump(18, bytes(16)) == [b"mine"]
    sent = kernel.recv(1 << 16)
    assert transport.HEADER.unpack_from(sent) == (32, 18, transport.REQUEST | transport.DUMP, 1, 0)
    ours.close()
    kernel.close()


def test_refusal_has_errno_words_and_position() -> None:
    """A recorded refusal of the second of two messages, with an extended error."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    netlink = transport.NetlinkSocket(socket.NETLINK_ROUTE)
    netlink.close()
    netlink._socket = ours
    body = struct.pack("=i", -22) + transport.HEADER.pack(16, 16, 5, 2, 0) + transport.text(1, "Invalid VLAN")
    kernel.send(transport.HEADER.pack(16 + len(body), transport.ERROR, 0x300, 2, 0) + body)
    with pytest.raises(transport.NetlinkRefusal, match="Invalid VLAN") as caught:
        netlink.talk([(16, transport.ACK, bytes(16)), (16, transport.ACK, bytes(16))])
    assert (caught.value.errno, caught.value.position) == (22, 1)
    ours.close()
    kernel.close()
