"""Encoding of nftables expressions, compared with libnftables' for the same rules.

recorded_rules.txt: each rule of nft 1.0, and the kernel's dump of its expressions (NFTA_RULE_EXPRESSIONS).
"""

import struct
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from kit.netlink import nft, transport

RECORDED = dict(
    line.split("\t") for line in Path(__file__).with_name("recorded_rules.txt").read_text().splitlines() if line
)
RULES = {
    'inet iifname "eth0" drop': (*nft.input_interface("eth0"), nft.drop()),
    'inet oifname "lo" ip6 daddr fd00::5 udp dport 53 dnat ip6 to fd10::2': (
        *nft.output_interface("lo"),
        *nft.to_network(ip_network("fd00::5")),
        *nft.to_ports(nft.UDP, 53, 53),
        *nft.destination_nat(ip_address("fd10::2")),
    ),
    "inet ip daddr 10.1.1.5 tcp dport 8000-8010 dnat ip to 10.0.2.2": (
        *nft.to_network(ip_network("10.1.1.5")),
        *nft.to_ports(nft.TCP, 8000, 8010),
        *nft.destination_nat(ip_address("10.0.2.2")),
    ),
    "inet ip saddr 10.1.1.5 snat ip to 10.0.2.1": (
        *nft.from_network(ip_network("10.1.1.5")),
        *nft.source_nat(ip_address("10.0.2.1")),
    ),
    'inet oifname "eth0" masquerade': (*nft.output_interface("eth0"), nft.masquerade()),
    "bridge ether type ip udp dport 67 accept": (
        *nft.ether_type(0x0800),
        *nft.to_ports(nft.UDP, 67, 67),
        nft.accept(),
    ),
    "bridge icmpv6 type nd-router-solicit accept": (*nft.ether_type(0x86DD), *nft.icmpv6_type(133), nft.accept()),
    "bridge arp daddr ip 169.254.75.10 accept": (
        *nft.ether_type(0x0806),
        nft.load_network(24, 4),
        nft.equal(ip_address("169.254.75.10").packed),
        nft.accept(),
    ),
}


def decoded(expression: bytes) -> tuple[str, dict[int, Any]]:
    """Name and attributes of an expression, nested ones as dictionaries."""
    fields = dict(transport.attributes(expression))
    return transport.string(fields[1]), _nested(fields.get(2, b""))


def _nested(data: bytes) -> dict[int, Any]:
    found: dict[int, Any] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        body = data[offset + 4 : offset + length]
        found[kind & 0x3FFF] = _nested(body) if kind & 0x8000 else body
        offset += (length + 3) & ~3
    return found


def differences(ours: dict[int, Any], theirs: dict[int, Any]) -> Iterator[tuple[int, Any, Any]]:
    """What is not as recorded. The kernel adds defaults to what it was sent, and leaves out the mark of nesting."""
    for kind, value in ours.items():
        there = theirs.get(kind)
        if isinstance(value, dict):
            yield from differences(value, there if isinstance(there, dict) else _nested(there or b""))
        elif value != there:
            yield kind, value, there


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_encoded_as_by_libnftables(rule: str) -> None:
    theirs = [decoded(raw) for kind, raw in transport.attributes(bytes.fromhex(RECORDED[rule])) if kind == 1]
    ours = [decoded(raw) for raw in RULES[rule]]
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (_, written), (_, recorded) in zip(ours, theirs, strict=True):
        assert not list(differences(written, recorded))


def test_every_recorded_rule_is_compared() -> None:
    assert RECORDED.keys() == RULES.keys()


def test_networks_are_compared_behind_their_mask() -> None:
    names = [decoded(each)[0] for each in nft.from_network(ip_network("10.0.2.0/24"))]
    assert names == ["meta", "cmp", "payload", "bitwise", "cmp"]
