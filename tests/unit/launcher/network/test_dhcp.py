import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.network import dhcp_options, dhcpv4, dhcpv6
from protos import launcher_pb2 as pb

MAC = "02:00:00:00:00:01"
HARDWARE = bytes.fromhex("020000000001")
CONFIG4 = pb.Dhcp4(
    device="k6t-eth0", server="10.0.2.1", address="10.0.2.2", prefix=24, router="10.0.2.1",
    routes=[pb.Route(destination="192.168.7.0/25", gateway="10.0.2.1")], dns=["10.96.0.10"],
    search=["default.svc.cluster.local", "svc.cluster.local"], hostname="vm",
)  # fmt: skip
CONFIG6 = pb.Dhcp6(device="k6t-eth0", address="fd10:0:2::2", dns=["fd00::a"], search=["svc.cluster.local"])


def packet(kind: int, options: dict[int, bytes] | None = None, mac: bytes = HARDWARE, client: str = "0.0.0.0") -> bytes:
    own = socket.inet_aton(client)
    header = struct.pack("!BBBBIHH4s4s4s4s16s64s128s", 1, 1, 6, 0, 0xCAFE, 3, 0, own, b"", b"", b"", mac, b"", b"")
    given = {53: bytes([kind])} | (options or {})
    body = b"".join(bytes([code, len(value)]) + value for code, value in given.items())
    return header + b"\x63\x82\x53\x63" + body + b"\xff"


def server4(**changes: object) -> dhcpv4.Dhcpv4Server:
    config = pb.Dhcp4()
    config.CopyFrom(CONFIG4)
    config.MergeFrom(pb.Dhcp4(**changes))  # type: ignore[arg-type]
    return dhcpv4.Dhcpv4Server(MAC, 1450, config, [])


def opened(reply: bytes | None) -> tuple[str, dict[int, bytes]]:
    assert reply is not None
    assert reply[0] == 2 and reply[4:8] == (0xCAFE).to_bytes(4, "big") and reply[28:34] == HARDWARE
    options = dhcp_options.decode(reply[240:])
    assert options is not None
    return socket.inet_ntoa(reply[16:20]), options


def test_offer_has_all_that_was_configured() -> None:
    address, options = opened(server4().answer(packet(1)))
    assert address == "10.0.2.2"
    assert options[53] == b"\x02"
    assert options[54] == options[3] == socket.inet_aton("10.0.2.1")
    assert options[1] == b"\xff\xff\xff\x00"
    assert options[6] == socket.inet_aton("10.96.0.10")
    assert options[12] == b"vm"
    assert options[15] == b"default.svc.cluster.local"
    assert options[26] == (1450).to_bytes(2, "big")
    assert options[51] == b"\xff\xff\xff\xff"
    assert options[119] == b"\x07default\x03svc\x07cluster\x05local\0\x03svc\x07cluster\x05local\0"
    # RFC 3442: clients that support option 121 ignore option 3, so it contains the default route as well.
    assert options[121] == b"\x19\xc0\xa8\x07\x00\x0a\x00\x02\x01" + b"\x00\x0a\x00\x02\x01"


def test_request_is_acknowledged_or_refused() -> None:
    mine = socket.inet_aton("10.0.2.2")
    chosen = packet(3, {50: mine, 54: socket.inet_aton("10.0.2.1")})
    address, options = opened(server4(lease_seconds=600).answer(chosen))
    assert (address, options[53], options[51]) == ("10.0.2.2", b"\x05", (600).to_bytes(4, "big"))
    assert opened(server4().answer(packet(3, client="10.0.2.2")))[1][53] == b"\x05"
    address, options = opened(server4().answer(packet(3, {50: socket.inet_aton("10.0.2.9")})))
    assert (address, options) == ("0.0.0.0", {53: b"\x06", 54: socket.inet_aton("10.0.2.1")})
    assert server4().answer(packet(3, {50: mine, 54: socket.inet_aton("10.0.2.77")})) is None


def test_rapid_commit_and_inform() -> None:
    assert opened(server4().answer(packet(1, {80: b""})))[1][53] == b"\x05"
    address, options = opened(server4().answer(packet(8, client="10.0.2.2")))
    assert address == "0.0.0.0" and options[53] == b"\x05" and 51 not in options


def test_only_the_nics_own_mac_is_served() -> None:
    assert server4().answer(packet(1, mac=b"\x02\0\0\0\0\x02")) is None


def test_custom_dhcp_options() -> None:
    custom = dhcp_options.custom("10.0.0.9", "pxe/boot.0", ["10.0.0.1", "10.0.0.2"], {240: "extra"})
    reply = dhcpv4.Dhcpv4Server(MAC, 1500, CONFIG4, custom).answer(packet(1))
    options = opened(reply)[1]
    assert (options[66], options[67], options[240]) == (b"10.0.0.9", b"pxe/boot.0", b"extra")
    assert options[42] == socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2")
    assert reply is not None and reply[20:24] == socket.inet_aton("10.0.0.9") and reply[108:118] == b"pxe/boot.0"


def test_custom_options_are_sorted_and_server_names_rejected_as_ntp() -> None:
    custom = dhcp_options.custom("boot.example.com", "", [], {254: "last", 224: "first"})
    assert custom == [(66, b"boot.example.com"), (224, b"first"), (254, b"last")]
    reply = dhcpv4.Dhcpv4Server(MAC, 1500, CONFIG4, custom).answer(packet(1))
    assert reply is not None and reply[20:24] == bytes(4) and opened(reply)[1][66] == b"boot.example.com"


def routes_of(config: pb.Dhcp4) -> list[tuple[str, str]]:
    """Option 121 as a client reads it: (destination, gateway), in order."""
    field = opened(dhcpv4.Dhcpv4Server(MAC, 1500, config, []).answer(packet(1)))[1].get(121, b"")
    found = []
    while field:
        bits, size = field[0], -(-field[0] // 8)
        network = socket.inet_ntoa(field[1 : 1 + size].ljust(4, b"\0"))
        found.append((f"{network}/{bits}", socket.inet_ntoa(field[1 + size : 5 + size])))
        field = field[5 + size :]
    return found


def test_slash_32_address_gets_a_link_route_to_its_router() -> None:
    """As from CNI plugins that assign /32 addresses and a router on the link."""
    config = pb.Dhcp4(device="k6t-eth0", server="169.254.75.10", address="10.244.3.7", prefix=32, router="169.254.1.1")
    options = opened(dhcpv4.Dhcpv4Server(MAC, 1500, config, []).answer(packet(1)))[1]
    assert options[54] == socket.inet_aton("169.254.75.10") and options[1] == b"\xff\xff\xff\xff"
    assert options[3] == socket.inet_aton("169.254.1.1")
    assert routes_of(config) == [("169.254.1.1/32", "0.0.0.0"), ("0.0.0.0/0", "169.254.1.1")]
    # Said by the handler, it is not said twice; and a network on the link makes all of it near.
    config.routes.append(pb.Route(destination="169.254.1.0/24", gateway="0.0.0.0"))
    config.routes.append(pb.Route(destination="192.168.0.0/16", gateway="169.254.1.9"))
    assert routes_of(config) == [
        ("169.254.1.0/24", "0.0.0.0"), ("192.168.0.0/16", "169.254.1.9"), ("0.0.0.0/0", "169.254.1.1"),
    ]  # fmt: skip


def test_network_without_router_has_no_default_route() -> None:
    config = pb.Dhcp4(device="k6t-a", server="10.5.0.254", address="10.5.0.7", prefix=24)
    assert routes_of(config) == []
    config.routes.append(pb.Route(destination="10.6.0.0/16", gateway="10.5.0.1"))
    assert routes_of(config) == [("10.6.0.0/16", "10.5.0.1")]
    assert 3 not in opened(dhcpv4.Dhcpv4Server(MAC, 1500, config, []).answer(packet(1)))[1]


def test_long_options_are_split_and_excess_options_omitted() -> None:
    search = [f"{letter * 60}.example.com" for letter in "abcdef"]
    small = server4(search=search).answer(packet(1))
    assert small is not None and len(small) <= 576 - 28
    large = server4(search=search).answer(packet(1, {57: (1500).to_bytes(2, "big")}))
    assert len(opened(large)[1][119]) > 255
    assert opened(small)[1][1] == b"\xff\xff\xff\x00"


@pytest.mark.parametrize(
    "changes", [{"address": "nonsense"}, {"server": "::1"}, {"dns": ["x"]}, {"router": "300.1.1.1"}]
)
def test_invalid_configuration_raises_value_error(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is not an IPv4 address"):
        server4(**changes)


@pytest.mark.parametrize("network", ["10.0.0.0/33", "10.0.0.0/x", "10.0.0.0/-1", "10.0.0/8"])
def test_invalid_routes_raise_value_error(network: str) -> None:
    with pytest.raises(ValueError, match="is not an IPv4"):
        server4(routes=[pb.Route(destination=network, gateway="10.0.2.1")])


@given(st.binary(max_size=600))
def test_malformed_packets_are_ignored(data: bytes) -> None:
    server4().answer(data)
    server4().answer(packet(1)[:240] + data)
    server = dhcpv6.Dhcpv6Server(MAC, CONFIG6)
    for kind in range(16):
        reply = server.answer(bytes([kind]) + data)
        assert reply is None or len(reply) < 4096


def test_invalid_search_domains_are_omitted() -> None:
    assert dhcp_options.names(["a" * 64, "ok.example", "", "x..y", ".".join(["a" * 60] * 5)]) == b"\x02ok\x07example\0"


# -- DHCPv6


def message(kind: int, *options: tuple[int, bytes]) -> bytes:
    return bytes([kind]) + b"xid" + b"".join(struct.pack("!HH", code, len(value)) + value for code, value in options)


CLIENT = (1, b"client-duid")
IA = (3, b"iaid" + bytes(8))


def answer6(data: bytes) -> tuple[int, dict[int, bytes]]:
    reply = dhcpv6.Dhcpv6Server(MAC, CONFIG6).answer(data)
    assert reply is not None
    parsed = dhcpv6.parse(reply)
    assert parsed is not None and parsed[1] == b"xid"
    return parsed[0], dict(parsed[2])


def test_solicit_request_renew() -> None:
    kind, options = answer6(message(1, CLIENT, IA))
    assert kind == 2 and options[1] == b"client-duid"
    assert (
        options[3]
        == b"iaid"
        + b"\xff" * 8
        + struct.pack("!HH", 5, 24)
        + socket.inet_pton(socket.AF_INET6, "fd10:0:2::2")
        + b"\xff" * 8
    )
    assert options[23] == socket.inet_pton(socket.AF_INET6, "fd00::a")
    assert options[24] == b"\x03svc\x07cluster\x05local\0"
    ours = (2, options[2])
    for request in (3, 5):
        assert answer6(message(request, CLIENT, ours, IA))[0] == 7
    assert answer6(message(6, CLIENT, IA))[0] == 7
    assert answer6(message(1, CLIENT, IA, (14, b"")))[0] == 7
    assert answer6(message(8, CLIENT, ours))[1][13] == b"\0\0"


def test_only_one_address_is_leased() -> None:
    server = dhcpv6.Dhcpv6Server(MAC, CONFIG6)
    reply = server.answer(message(1, CLIENT, IA, (3, b"two." + bytes(8))))
    parsed = dhcpv6.parse(reply or b"")
    assert parsed is not None
    first, second = (value for code, value in parsed[2] if code == 3)
    assert first[:4] == b"iaid" and len(first) == 40
    assert second == b"two." + bytes(8) + struct.pack("!HHH", 13, 2, 2)


@pytest.mark.parametrize(
    "data",
    [
        message(1, IA),  # no client
        message(3, CLIENT, IA),  # no server
        message(3, CLIENT, (2, b"another"), IA),
        message(1, CLIENT, (2, b"another"), IA),
        message(1, CLIENT),  # no association
        message(7, CLIENT, IA),
        message(1, CLIENT, IA)[:-1],
        b"",
    ],
)
def test_messages_without_reply(data: bytes) -> None:
    assert dhcpv6.Dhcpv6Server(MAC, CONFIG6).answer(data) is None


def test_information_request() -> None:
    kind, options = answer6(message(11))
    assert kind == 7 and 23 in options and 3 not in options
