"""Network cards of a guest that runs: plugged in, taken out, cables pulled, by a launcher that may die meanwhile."""

import copy
import os
import signal
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from launcher.domain import pci
from protos import launcher_pb2 as pb
from tests.node import launcherlab, netlab
from tests.node.launcherguest import MAC, NIC, ask, document, running
from tests.node.launcherlab import Pod
from tests.waiting import wait_for

pytestmark = pytest.mark.node
BLUE_MAC = "02:00:00:00:00:0b"
BLUE_BRIDGE = """
ip link add k6t-blue type bridge
ip addr add 10.0.3.1/24 dev k6t-blue
ip link set k6t-blue up
ip tuntap add dev tap1 mode tap user 107 group 107 vnet_hdr
ip link set tap1 master k6t-blue up
"""
BLUE = pb.Nic(
    name="blue", tap="tap1", mac=BLUE_MAC, mtu=1300,
    dhcp4=pb.Dhcp4(device="k6t-blue", server="10.0.3.1", address="10.0.3.7", prefix=24),
)  # fmt: skip
Guest = tuple[Pod, netlab.Namespace, pb.Report]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with running() as found:
        found[1].run(BLUE_BRIDGE)
        yield found


def with_blue(state: str = "up", default: str = "up", **more: Any) -> dict[str, Any]:
    """The VMI with a second card."""
    vmi = copy.deepcopy(document())
    first = vmi["spec"]["domain"]["devices"]["interfaces"][0]
    first["state"] = default
    blue = {"name": "blue", "bridge": {}, "model": "virtio", "macAddress": BLUE_MAC, "state": state, **more}
    vmi["spec"]["domain"]["devices"]["interfaces"].append(blue)
    vmi["spec"]["networks"].append({"name": "blue", "multus": {"networkName": "blue"}})
    return vmi


def card(network: netlab.Namespace, mac: str = BLUE_MAC, address: str = "10.0.2.2") -> dict[str, Any]:
    """The guest's report of the NIC with this MAC; empty if there is none."""
    found = [card for card in ask(network, address).get("interfaces", []) if card["mac"] == mac]
    return found[0] if found else {}


def names(report: pb.Report) -> list[str]:
    return [nic.name for nic in report.nics]


def domain_nics(pod: Pod) -> list[str]:
    """The NICs of the domain; empty while the server is down."""
    try:
        return names(pod.report())
    except grpc.RpcError:
        return []


def dhcp_servers(network: netlab.Namespace) -> list[str]:
    """Where DHCPv4 is served."""
    return sorted(line.split()[3] for line in network.run("ss -Hlun sport = :67").splitlines())


def kill_server(pod: Pod) -> None:
    """Ends the gRPC server, and waits for the next one."""
    victim = pod.child("-m\0launcher")
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: pod.child("-m\0launcher") not in (0, victim), "another server")


def plugged_in(guest: Guest) -> None:
    pod, network, _ = guest
    pod.sync(with_blue(), [NIC, BLUE])
    wait_for(lambda: "10.0.3.7/24" in card(network).get("addresses", []), "the new card's address", 60)


def taken_out(guest: Guest) -> None:
    pod, network, _ = guest
    pod.sync(with_blue("absent"), [NIC, BLUE])
    wait_for(lambda: domain_nics(pod) == ["default"], "the guest to let go of the card", 60)
    assert not card(network)


def test_report_lists_nics_of_domain(guest: Guest) -> None:
    (nic,) = guest[2].nics
    assert (nic.name, nic.mac, nic.link_up, nic.queues, nic.model) == ("default", MAC, True, 1, "virtio")


def test_nic_is_plugged_and_unplugged(guest: Guest) -> None:
    pod, network, first = guest
    boot = ask(network)["bootId"]
    plugged_in(guest)
    report = pod.report()
    assert [(nic.name, nic.mac, nic.link_up, nic.model) for nic in report.nics] == [
        ("default", MAC, True, "virtio"),
        ("blue", BLUE_MAC, True, "virtio"),
    ]
    assert card(network)["mtu"] == 1300
    assert ask(network, "10.0.3.7")["bootId"] == boot
    assert dhcp_servers(network) == ["0.0.0.0%k6t-blue:67", "0.0.0.0%k6t-eth0:67"]
    taken_out(guest)
    assert dhcp_servers(network) == ["0.0.0.0%k6t-eth0:67"]
    plugged_in(guest)
    # Vanished from the VMI is as good as absent.
    pod.sync(document(), [NIC])
    wait_for(lambda: domain_nics(pod) == ["default"], "the guest to let go of the card", 60)
    assert pod.report().qemu_pid == first.qemu_pid and ask(network)["bootId"] == boot


def test_link_state_is_changed(guest: Guest) -> None:
    pod, network, _ = guest
    plugged_in(guest)
    assert [nic.link_up for nic in pod.sync(with_blue("down"), [NIC, BLUE]).nics] == [True, False]
    wait_for(lambda: card(network)["state"] == "down", "the guest to see it")
    assert [nic.link_up for nic in pod.sync(with_blue("up"), [NIC, BLUE]).nics] == [True, True]
    wait_for(lambda: card(network)["state"] == "up", "the guest to see it")
    # The other card, seen over this one.
    pod.sync(with_blue("up", "down"), [NIC, BLUE])
    wait_for(lambda: card(network, MAC, "10.0.3.7").get("state") == "down", "the guest to see it")
    pod.sync(with_blue(), [NIC, BLUE])
    wait_for(lambda: card(network, MAC).get("state") == "up", "the guest to see it")
    taken_out(guest)


def test_server_killed_during_hotplug_is_restarted_and_resumes(guest: Guest) -> None:
    pod, network, _ = guest
    with pod.client() as client:
        request = launcherlab.sync_request(with_blue(), [NIC, BLUE])
        call = client.Sync.future(request, timeout=30)
        wait_for(lambda: (pod.run / "sync.bin").read_bytes() == request.SerializeToString(), "the Sync to begin")
        kill_server(pod)
        call.cancel()
    wait_for(lambda: domain_nics(pod) == ["default", "blue"], "the next server to plug it in", 60)
    wait_for(lambda: "10.0.3.7/24" in card(network).get("addresses", []), "the new card's address", 60)
    # Once more, while the guest has been asked to let go.
    pod.sync(with_blue("absent"), [NIC, BLUE])
    kill_server(pod)
    wait_for(lambda: domain_nics(pod) == ["default"], "the guest to let go of the card", 60)


def test_failing_nic_does_not_affect_others(guest: Guest) -> None:
    pod, network, first = guest
    vmi = with_blue()
    vmi["spec"]["domain"]["devices"]["interfaces"] += [
        {"name": "old", "bridge": {}, "model": "e1000"},
        {"name": "lost", "bridge": {}, "model": "virtio"},
        {"name": "slow", "bridge": {}, "model": "virtio"},
    ]
    lost = pb.Nic(name="lost", tap="tap9", mac="02:00:00:00:00:0d", dhcp4=BLUE.dhcp4)
    lost.dhcp4.device = "k6t-lost"
    with pytest.raises(grpc.RpcError) as raised:
        pod.sync(vmi, [NIC, BLUE, pb.Nic(name="old", tap="tap8", mac="02:00:00:00:00:0c"), lost])
    words = raised.value.details() or ""
    assert raised.value.code() == grpc.StatusCode.INTERNAL
    assert "interfaces[2].model: 'old' cannot be plugged in while the VM runs" in words
    assert "interface lost: it cannot be plugged into tap9: " in words
    assert "interface lost: cannot serve DHCP: " in words
    assert dhcp_servers(network) == ["0.0.0.0%k6t-blue:67", "0.0.0.0%k6t-eth0:67"]
    assert "slow" not in words  # it has no tap yet, and waits for it
    wait_for(lambda: "10.0.3.7/24" in card(network).get("addresses", []), "the good card's address", 60)
    assert domain_nics(pod) == ["default", "blue"]
    with pytest.raises(grpc.RpcError) as raised:
        pod.sync(vmi, [NIC, BLUE, pb.Nic(name="old", tap="tap8", mac="02:00:00:00:00:0c")])
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert pod.report().qemu_pid == first.qemu_pid
    taken_out(guest)


def test_host_route_address_with_router_outside_subnet_works(guest: Guest) -> None:
    """What the bridge binding takes over from a CNI plugin that gives /32 addresses."""
    pod, network, _ = guest
    nic = copy.deepcopy(BLUE)
    nic.dhcp4.CopyFrom(
        pb.Dhcp4(device="k6t-blue", server="169.254.1.1", address="10.9.9.9", prefix=32, router="169.254.1.1")
    )
    network.run("ip addr add 169.254.1.1/32 dev k6t-blue; ip route add 10.9.9.9 dev k6t-blue src 169.254.1.1")
    pod.sync(with_blue(), [NIC, nic])
    wait_for(lambda: "10.9.9.9/32" in card(network).get("addresses", []), "the new card's address", 60)
    # Its answer to the router, which is in no network of its own, comes over the route that DHCP gave it.
    assert wait_for(lambda: ask(network, "10.9.9.9"), "an answer over that route", 30)
    taken_out(guest)


def test_nics_beyond_free_ports_are_refused(guest: Guest) -> None:
    pod, network, first = guest
    numbers = range(2, pci.SPARE_PORTS + 3)
    vmi, nics = copy.deepcopy(document()), [NIC]
    for number in numbers:
        network.run(f"ip tuntap add dev tap{number} mode tap user 107 group 107 vnet_hdr")
        vmi["spec"]["domain"]["devices"]["interfaces"].append(
            {"name": f"more{number}", "bridge": {}, "model": "virtio"}
        )
        nics.append(pb.Nic(name=f"more{number}", tap=f"tap{number}", mac=f"02:00:00:00:02:{number:02x}"))
    with pytest.raises(grpc.RpcError) as raised:
        pod.sync(vmi, nics)
    last = numbers[-1]
    words = "no free PCI slot; restart the VM, or unplug another device first"
    assert raised.value.details() == f"interface more{last}: it cannot be plugged into tap{last}: {words}"
    assert domain_nics(pod) == ["default", *(f"more{number}" for number in numbers[:-1])]
    pod.sync(document(), [NIC])
    wait_for(lambda: domain_nics(pod) == ["default"], "the guest to let go of the cards", 60)
    assert pod.report().qemu_pid == first.qemu_pid


def test_nic_not_released_by_guest_is_kept(guest: Guest) -> None:
    pod, _, _ = guest
    plugged_in(guest)
    with pod.client() as client:
        client.Pause(pb.PauseRequest())
        for _ in range(2):  # the second request finds the first one still waiting
            report = pod.sync(with_blue("absent"), [NIC, BLUE])
            assert names(report) == ["default", "blue"]
        client.Unpause(pb.UnpauseRequest())
    wait_for(lambda: domain_nics(pod) == ["default"], "the guest to let go of the card", 60)
