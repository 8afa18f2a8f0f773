"""rtnetlink messages."""

import struct

from cni import route


def test_vlans_are_packed_as_ranges() -> None:
    _, _, body = route.add_vlans(7, 93, [1, 2, 3, 9])
    infos = [struct.pack("=HH", flags, vlan) for flags, vlan in ((6, 93), (8, 1), (16, 3), (0, 9))]
    assert all(each in body for each in infos) and struct.pack("=HH", 0, 2) not in body[40:]
