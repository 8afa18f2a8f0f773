"""Address plans: the chosen block, and skipped ones."""

from __future__ import annotations

import ipaddress
import json

import pytest

from cluster import network
from cluster.console import ClusterError

Network = ipaddress.IPv4Network


def test_first_block_is_chosen_when_none_is_in_use() -> None:
    plan = network.choose([])
    assert str(plan.block) == "10.77.0.0/16"
    assert (str(plan.nodes), str(plan.pods), str(plan.services)) == ("10.77.0.0/24", "10.77.16.0/20", "10.77.128.0/18")
    assert (plan.api, plan.machine, plan.dns) == ("10.77.0.1", "10.77.0.254", "10.77.128.10")


@pytest.mark.parametrize("used", ["10.77.3.0/24", "10.76.0.0/15", "10.77.0.9/32", "10.64.0.0/12"])
def test_overlapping_blocks_are_skipped(used: str) -> None:
    plan = network.choose([Network(used)])
    assert not plan.block.overlaps(Network(used))


def test_search_wraps_to_zero_after_the_last_block() -> None:
    used = [Network(f"10.{n}.0.0/16") for n in range(77, 256)]
    assert str(network.choose(used).block) == "10.0.0.0/16"


def test_error_when_every_block_is_in_use() -> None:
    with pytest.raises(ClusterError, match="in use"):
        network.choose([Network("10.0.0.0/8")])


def test_ranges_of_a_plan_do_not_overlap() -> None:
    plan = network.choose([])
    assert not plan.nodes.overlaps(plan.pods)
    assert not plan.pods.overlaps(plan.services)
    assert all(plan.node_pods(n).subnet_of(plan.pods) for n in (1, 2))
    assert not plan.node_pods(1).overlaps(plan.node_pods(2))
    assert all(r.subnet_of(plan.block) for r in (plan.nodes, plan.pods, plan.services))


def test_node_range_fits_all_its_pods() -> None:
    assert network.choose([]).node_pods(1).num_addresses > 110 * 2


def test_used_networks_exclude_the_default_route() -> None:
    addresses = json.dumps(
        [
            {"ifname": "eth0", "addr_info": [{"family": "inet", "local": "192.0.2.5", "prefixlen": 24}]},
            {"ifname": "eth1", "addr_info": [{"family": "inet6", "local": "fd00::2", "prefixlen": 64}]},
            {"ifname": "down"},
        ]
    )
    routes = json.dumps([{"dst": "default", "gateway": "192.0.2.1"}, {"dst": "10.77.0.0/16"}, {"dst": "10.80.0.1"}])
    found = network.parse_used(addresses, routes)
    assert [str(n) for n in found] == ["192.0.2.0/24", "10.77.0.0/16", "10.80.0.1/32"]


def test_link_macs_are_unique_and_locally_administered() -> None:
    plan = network.choose([])
    macs = [network.mac(plan.api), *(network.mac(plan.node(n), link) for n in (1, 2) for link in (0, 1))]
    assert macs[1] == "02:00:0a:4d:00:0b"
    assert len(set(macs)) == 5
    # Bit 1: locally administered. Bit 0: not a group address.
    assert all(int(each[:2], 16) & 3 == 2 for each in macs)


def test_empty_output_gives_no_networks() -> None:
    assert network.parse_used("", "") == []
