"""nftables rules of the masquerade binding."""

import ipaddress

import pytest

from api.errors import NetworkError
from handler.pod_network import nftables

FAMILY = nftables.IpFamily(
    ipaddress.ip_address("10.0.2.2"), ipaddress.ip_address("10.0.2.1"), ipaddress.IPv4Network("10.0.2.0/24"),
    (ipaddress.ip_address("10.1.1.5"),),
)  # fmt: skip


def rules(*ports: nftables.ForwardedPorts) -> nftables.MasqueradeRules:
    return nftables.MasqueradeRules("eth0", "k6t-eth0", (FAMILY,), ports)


def test_rules_forward_everything():
    text = rules().text()
    assert 'iifname "eth0" ip daddr { 10.1.1.5 } dnat ip to 10.0.2.2' in text
    assert 'oifname "eth0" ip saddr 10.0.2.0/24 masquerade' in text
    assert 'oifname "k6t-eth0" ip saddr { 127.0.0.1, 10.1.1.5 } snat ip to 10.0.2.1' in text
    assert 'iifname "k6t-eth0" ip daddr 127.0.0.0/8 drop' in text


def test_rules_forward_only_what_is_listed():
    text = rules(
        nftables.ForwardedPorts("tcp", 80, 80),
        nftables.ForwardedPorts("tcp", 8000, 8010),
        nftables.ForwardedPorts("udp", 53, 53),
    ).text()
    assert "tcp dport { 80, 8000-8010 } dnat ip to 10.0.2.2" in text and "udp dport { 53 } dnat" in text
    assert "{ 10.1.1.5 } dnat" not in text


def test_marker_differs_between_rules():
    assert rules().marker != rules(nftables.ForwardedPorts("tcp", 80, 80)).marker
    assert rules().marker == rules().marker and rules().marker in rules().text()


@pytest.mark.parametrize("bad", [("sctp", 1, 1), ("tcp; drop", 1, 1), ("tcp", 0, 1), ("udp", 9, 8), ("tcp", 1, 65536)])
def test_invalid_ports_raise_network_error(bad):
    with pytest.raises(NetworkError, match="cannot forward"):
        nftables.ForwardedPorts(*bad)
