"""nftables rules of the masquerade binding."""

import ipaddress

import pytest

from api.errors import NetworkError
from handler.pod_network import nftables
from kit.netlink import nft

FAMILY = nftables.IpFamily(
    ipaddress.ip_address("10.0.2.2"), ipaddress.ip_address("10.0.2.1"), ipaddress.IPv4Network("10.0.2.0/24"),
    (ipaddress.ip_address("10.1.1.5"),),
)  # fmt: skip


def rules(*ports: nftables.ForwardedPorts) -> nftables.MasqueradeRules:
    return nftables.MasqueradeRules("eth0", "k6t-eth0", (FAMILY,), ports)


def chain(table: nftables.NftTable, name: str) -> list[nft.Expressions]:
    (found,) = [chain.rules for chain in table.chains() if chain.name == name]
    return found


ETH0, BRIDGE, LO = nft.input_interface("eth0"), nft.output_interface("k6t-eth0"), nft.output_interface("lo")
TO_POD = nft.to_network(ipaddress.ip_network("10.1.1.5"))
TO_GUEST = nft.destination_nat(ipaddress.ip_address("10.0.2.2"))


def test_rules_forward_everything():
    table = rules()
    loopback, whole_loopback = ipaddress.ip_network("127.0.0.1"), ipaddress.ip_network("127.0.0.0/8")
    gateway = nft.source_nat(ipaddress.ip_address("10.0.2.1"))
    assert chain(table, "prerouting") == [(*ETH0, *TO_POD, *TO_GUEST)]
    assert chain(table, "output") == [(*LO, *nft.to_network(loopback), *TO_GUEST), (*LO, *TO_POD, *TO_GUEST)]
    assert chain(table, "postrouting") == [
        (
            *nft.output_interface("eth0"),
            *nft.from_network(ipaddress.ip_network("10.0.2.0/24")),
            nft.masquerade(),
        ),
        (*BRIDGE, *nft.from_network(loopback), *gateway),
        (*BRIDGE, *nft.from_network(ipaddress.ip_network("10.1.1.5")), *gateway),
    ]
    guarded = (*nft.input_interface("k6t-eth0"), *nft.to_network(whole_loopback), nft.drop())
    assert guarded in chain(table, "guard")


def test_rules_forward_only_what_is_listed():
    table = rules(
        nftables.ForwardedPorts("tcp", 80, 80),
        nftables.ForwardedPorts("tcp", 8000, 8010),
        nftables.ForwardedPorts("udp", 53, 53),
    )
    ports = [nft.to_ports(nft.TCP, 80, 80), nft.to_ports(nft.TCP, 8000, 8010), nft.to_ports(nft.UDP, 53, 53)]
    assert chain(table, "prerouting") == [(*ETH0, *TO_POD, *match, *TO_GUEST) for match in ports]
    assert (*LO, *TO_POD, *TO_GUEST) not in chain(table, "output")


def test_marker_differs_between_rules():
    assert rules().marker != rules(nftables.ForwardedPorts("tcp", 80, 80)).marker
    assert rules().marker == rules().marker
    assert nft.chain(nft.INET, nftables.TABLE, rules().marker) == rules().messages()[-1]


def test_table_is_replaced_as_a_whole():
    family, name = nft.INET, nftables.TABLE
    assert rules().messages()[:3] == [
        nft.ensure_table(family, name), nft.delete_table(family, name), nft.table(family, name)
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [("sctp", 1, 1), ("tcp; drop", 1, 1), ("tcp", 0, 1), ("udp", 9, 8), ("tcp", 1, 65536)])
def test_invalid_ports_raise_network_error(bad):
    with pytest.raises(NetworkError, match="cannot forward"):
        nftables.ForwardedPorts(*bad)
