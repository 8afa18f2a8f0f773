"""The pod network on real namespaces: what a guest, its pod and the node see of each other."""

import asyncio
import contextlib
import grp
import ipaddress
import pathlib
import pwd
import time

import pytest

from api.errors import NetworkError
from handler.pod_network import nftables
from handler.pod_network import setup as network_setup
from handler.pod_network.interface_record import InterfaceRecord
from handler.pod_network.interface_request import GATEWAY_MAC, InterfaceRequest, MasqueradeNetwork
from handler.pod_network.router_advertiser import Advertiser
from handler.pod_network.vm_interface import VmInterface
from kit import proc
from kit.netlink import route, tap
from tests.node import netlab
from tests.node.netlab import GUEST6, MAC, NODE4, NODE6, POD4, POD6, Namespace

pytestmark = pytest.mark.node
HOST = "/proc/self/ns/net"

SERVER = """
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((sys.argv[1], int(sys.argv[2]))); s.listen(); print('up', flush=True)
while True:
    c, peer = s.accept(); c.sendall(('seen ' + peer[0]).encode()); c.close()
"""
CLIENT = """
import socket, sys
try:
    c = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3); print(c.recv(100).decode())
except OSError as error:
    print('failed', error)
"""


RECORD = InterfaceRecord("none", pathlib.Path("/nonexistent"))  # this binding takes nothing, and so records nothing


def request(
    ports: tuple[nftables.ForwardedPorts, ...] = (), queues: int = 1, subnet: str = "10.0.2.0/24"
) -> InterfaceRequest:
    subnets = ipaddress.IPv4Network(subnet), ipaddress.IPv6Network("fd10:0:2::/120")
    return InterfaceRequest("default", "", MAC, True, queues, MasqueradeNetwork(*subnets, ports))


def made(pod: Namespace, wanted: InterfaceRequest) -> network_setup.PodNetworkState:
    with proc.Process(pod.pid) as process:
        return proc.isolated_now(lambda: network_setup.attach(process, [wanted], RECORD, "uid", host=HOST))


def attach(pod: Namespace, wanted: InterfaceRequest) -> VmInterface:
    return made(pod, wanted).attachments[0]


def attaching(process: proc.Process, host: str) -> network_setup.PodNetworkState:
    return network_setup.attach(process, [request()], RECORD, "uid", host=host)


def advertising(process: proc.Process, attachment: VmInterface):
    assert attachment.router6 is not None
    return Advertiser.start(process, attachment.bridge, attachment.router6, GATEWAY_MAC, attachment.mtu)


@contextlib.contextmanager
def serving(where: Namespace, address: str, port: int):
    server = where.start("python3", "-c", SERVER, address, str(port))
    try:
        assert server.stdout and server.stdout.readline() == "up\n"
        yield
    finally:
        server.kill()
        server.wait()


def ask(where: Namespace, address: str, port: int) -> str:
    client = where.start("python3", "-c", CLIENT, address, str(port))
    return client.communicate(timeout=20)[0].strip()


def test_guest_and_node_network_reach_each_other():
    with netlab.node_and_pod() as (node, pod):
        attachment = attach(pod, request())
        assert tuple(map(str, attachment.addresses)) == (POD4, POD6)
        with netlab.guest_of(pod) as guest:
            with serving(guest, "0.0.0.0", 8080):
                assert ask(node, POD4, 8080) == f"seen {NODE4}"
                # The pod itself, by its loopback and by its own address; the guest sees the gateway.
                assert ask(pod, "127.0.0.1", 8080) == "seen 10.0.2.1"
                assert ask(pod, POD4, 8080) == "seen 10.0.2.1"
            with serving(node, NODE4, 9090):
                assert ask(guest, NODE4, 9090) == f"seen {POD4}"


def test_ipv6_with_static_router_works():
    with netlab.node_and_pod() as (node, pod):
        attach(pod, request())
        with netlab.guest_of(pod) as guest:
            guest.run(f"ip addr add {GUEST6}/120 dev eth0 nodad; ip route add default via fd10:0:2::1")
            with serving(guest, "::", 8080):
                assert ask(node, POD6, 8080) == f"seen {NODE6}"
                assert ask(pod, POD6, 8080) == "seen fd10:0:2::1"
            with serving(node, NODE6, 9090):
                assert ask(guest, NODE6, 9090) == f"seen {POD6}"


def test_only_listed_ports_are_forwarded():
    with netlab.node_and_pod() as (node, pod):
        attach(pod, request((nftables.ForwardedPorts("tcp", 8080, 8080), nftables.ForwardedPorts("udp", 53, 53))))
        with netlab.guest_of(pod) as guest:
            with serving(guest, "0.0.0.0", 8080), serving(guest, "0.0.0.0", 8081):
                assert ask(node, POD4, 8080) == f"seen {NODE4}"
                assert ask(node, POD4, 8081).startswith("failed")
            with serving(node, NODE4, 9090):
                assert ask(guest, NODE4, 9090) == f"seen {POD4}"


def test_repeated_setup_changes_nothing_and_keeps_connections():
    with netlab.node_and_pod() as (node, pod):
        assert made(pod, request()).changed
        with netlab.guest_of(pod) as guest, serving(guest, "0.0.0.0", 8080):
            before = pod.run("nft -a list ruleset; ip addr; ip route")
            assert made(pod, request()).changed == ()
            after = pod.run("nft -a list ruleset; ip addr; ip route")
            assert [line for line in before.splitlines() if "_lft" not in line] == [
                line for line in after.splitlines() if "_lft" not in line
            ]
            assert ask(node, POD4, 8080) == f"seen {NODE4}"


def test_missing_parts_are_restored():
    with netlab.node_and_pod() as (_, pod):
        attach(pod, request())
        pod.run(
            "nft delete table inet hyperlet; ip addr del 10.0.2.1/24 dev k6t-eth0; ip link set tap0 nomaster; "
            "echo 0 > /proc/sys/net/ipv4/ip_forward"
        )
        assert set(made(pod, request()).changed) == {
            "address k6t-eth0 10.0.2.1/24",
            "join tap0",
            "sysctl net/ipv4/ip_forward",
            "rules",
        }
        assert made(pod, request()).changed == ()


def named(entry, number: int) -> str:
    """The name of a user or group, or its number when this machine knows no name for it."""
    try:
        return entry(number)[0]
    except KeyError:
        return str(number)


def test_tap_is_owned_by_launcher_and_has_pod_mtu():
    with netlab.node_and_pod(mtu=1400) as (_, pod):
        assert attach(pod, request(queues=4)).mtu == 1400
        details = pod.run("ip -d link show tap0; ip -d link show k6t-eth0")
        # ip prints names where this machine has them
        assert f"user {named(pwd.getpwuid, 107)} group {named(grp.getgrgid, 107)} " in details
        assert "multi_queue" in details and "vnet_hdr on" in details
        assert details.count("mtu 1400") == 2
        with netlab.guest_of(pod, multi_queue=True):
            pass


def test_tap_owner_above_2_31_is_kept():
    """The users of a pod's user namespace are anywhere below 2^32."""
    user, name = 2_193_817_707, "high-user"
    tap.add_tap(name, user, user, multi_queue=False)
    try:
        read = [pathlib.Path(f"/sys/class/net/{name}/{each}").read_text().strip() for each in ("owner", "group")]
        # tun_show_owner prints %d of the kernel's kuid_t.
        assert [int(text) % (1 << 32) for text in read] == [user, user]
    finally:
        with route.RtnetlinkSocket() as links:
            links.do(route.del_link(name))


def test_pod_without_ipv6_is_supported():
    with netlab.node_and_pod(ipv6=False) as (_, pod):
        attachment = attach(pod, request())
        assert (tuple(map(str, attachment.addresses)), attachment.lease6) == ((POD4,), None)
        assert pod.run("cat /proc/sys/net/ipv6/conf/k6t-eth0/disable_ipv6").strip() == "1"
        assert made(pod, request()).changed == ()


def test_guest_cannot_reach_pod_loopback():
    with netlab.node_and_pod(ipv6=False) as (_, pod):
        attach(pod, request())
        with netlab.guest_of(pod) as guest, serving(pod, "127.0.0.1", 7070):
            guest.run(
                "ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via 10.0.2.1; "
                "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; "
                "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet; "
                "ip route flush table local type local 127.0.0.0/8 2>/dev/null || true"
            )
            assert ask(guest, "127.0.0.1", 7070).startswith("failed")


def test_host_network_namespace_is_refused():
    # A namespace that plays the node: were it not refused, the rules would be in there, not on this machine.
    with netlab.node_and_pod() as (_, pod), proc.Process(pod.pid) as process:
        with pytest.raises(NetworkError, match="node's network namespace"):
            proc.isolated_now(lambda: attaching(process, f"/proc/{pod.pid}/ns/net"))
        assert "k6t-" not in pod.run("ip link")


def test_overlapping_subnet_is_refused():
    wanted = request(subnet="192.168.77.0/24")
    with netlab.node_and_pod() as (_, pod), pytest.raises(NetworkError, match="vmNetworkCIDR"):
        attach(pod, wanted)


def test_ended_process_is_refused():
    with netlab.node_and_pod() as (_, pod):
        process = proc.Process(pod.pid)
        pod.close()
        time.sleep(0.05)
        with process, pytest.raises(NetworkError):
            proc.isolated_now(lambda: attaching(process, HOST))


async def test_guest_gets_ipv6_router_by_advertisement():
    with netlab.node_and_pod() as (node, pod):
        attachment = attach(pod, request())
        with proc.Process(pod.pid) as process:
            advertiser = await advertising(process, attachment)
        try:
            with netlab.guest_of(pod) as guest:
                deadline = time.monotonic() + 20
                while "default via fe80" not in (routes := guest.run("ip -6 route")):
                    assert time.monotonic() < deadline, routes
                    await asyncio.sleep(0.2)
                assert "fd10:0:2::/120" in routes
                # The guest was told that addresses come by DHCPv6 and made none of its own.
                assert "fd10:0:2" not in guest.run("ip -6 addr show dev eth0")
                guest.run(f"ip addr add {GUEST6}/128 dev eth0 nodad")
                with serving(node, NODE6, 9090):
                    assert await asyncio.to_thread(ask, guest, NODE6, 9090) == f"seen {POD6}"
        finally:
            advertiser.close()


async def test_router_solicitation_is_answered():
    with netlab.node_and_pod() as (_, pod):
        attachment = attach(pod, request())
        with proc.Process(pod.pid) as process, netlab.guest_of(pod) as guest:
            await asyncio.sleep(3)  # the guest's own solicitations of its boot are over or on their way
            advertiser = await advertising(process, attachment)
            try:
                guest.run("ip link set eth0 down; ip link set eth0 up")
                deadline = time.monotonic() + 15
                while "default via fe80" not in guest.run("ip -6 route"):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.1)
            finally:
                advertiser.close()


def test_pod_with_host_network_is_refused():
    with netlab.node_and_pod() as (node, _):
        with proc.Process(node.pid) as process, pytest.raises(NetworkError, match="node's network namespace"):
            proc.isolated_now(lambda: attaching(process, f"/proc/{node.pid}/ns/net"))
        assert "k6t" not in node.run("ip link")
