"""A launcher with a whole Linux in it: DHCP, the guest agent, cloud-init data, ACPI."""

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from protos import launcher_pb2 as pb
from tests.node import netlab
from tests.node.launcherguest import MAC, NIC, ask, document, running
from tests.node.launcherlab import Pod
from tests.waiting import wait_for

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def guest() -> Iterator[tuple[Pod, netlab.Namespace, pb.Report]]:
    with running() as found:
        yield found


Guest = tuple[Pod, netlab.Namespace, pb.Report]


def test_guest_has_dhcp_addresses(guest: Guest) -> None:
    _, network, _ = guest
    told = ask(network)
    (card,) = told["interfaces"]
    assert card["mac"] == MAC and card["mtu"] == 1400
    assert "10.0.2.2/24" in card["addresses"]
    assert told["search"] == ["default.svc.cluster.local", "svc.cluster.local"]


def test_guest_reads_cloud_init_data(guest: Guest) -> None:
    _, network, _ = guest
    told = ask(network)
    assert told["hostname"] == "from-cloud-init"
    assert "instance-id" in told["cloudInit"]["meta-data"]
    assert {disk["bytes"] for disk in told["disks"]} >= {1 << 20}


def test_agent_reports_guest_info(guest: Guest) -> None:
    pod, _, _ = guest

    def known() -> pb.Report | None:
        report = pod.report()
        addresses = {address for nic in report.guest.interfaces for address in nic.addresses}
        return report if "10.0.2.2/24" in addresses else None

    report = wait_for(known, "the agent's addresses", 60)
    assert report.agent_connected
    assert report.guest.hostname == "from-cloud-init"
    assert report.guest.agent_version and report.guest.os.kernel_release
    assert MAC in {nic.mac for nic in report.guest.interfaces}


def test_dhcp_and_agent_survive_server_restart(guest: Guest) -> None:
    pod, network, report = guest
    boot = ask(network)["bootId"]
    os.kill(pod.child("-m\0launcher"), signal.SIGKILL)
    after = wait_for(lambda: (found := pod.wait_state(pb.DOMAIN_STATE_RUNNING)).agent_connected and found, "the agent")
    assert after.qemu_pid == report.qemu_pid
    # The handler's next Sync is the same again, and changes nothing.
    assert pod.sync(document(), [NIC]).qemu_pid == report.qemu_pid
    wait_for(lambda: network.run("ss -Hlun sport = :67"), "the DHCP server")
    assert network.run("ss -Hlun sport = :547")
    assert ask(network)["bootId"] == boot


SOLICIT = """
import socket, struct
option = lambda code, value: struct.pack("!HH", code, len(value)) + value
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
sock.bind(("::", 546))
sock.settimeout(30)
solicit = b"\\x01abc" + option(1, b"client") + option(3, b"iaid" + bytes(8))
sock.sendto(solicit, ("ff02::1:2", 547, 0, socket.if_nametoindex("eth0")))
print(sock.recv(2000).hex())
"""


def test_dhcpv6_is_answered_on_bridge(guest: Guest) -> None:
    _, network, _ = guest
    other = netlab.Namespace()
    try:
        network.run(f"ip link add side type veth peer name eth0 netns {other.pid}; ip link set side master k6t-eth0 up")
        other.run("sysctl -qw net.ipv6.conf.eth0.accept_dad=0; ip link set eth0 up")
        wait_for(lambda: "fe80" in other.run("ip -6 addr show dev eth0 scope link"), "a link-local address")
        reply = bytes.fromhex(other.run(f"/usr/bin/python3 -c '{SOLICIT}'").strip())
    finally:
        other.close()
    assert reply[:4] == b"\x02abc"
    assert socket.inet_pton(socket.AF_INET6, "fd10:0:2::2") in reply


def test_guest_shuts_down_by_acpi(guest: Guest) -> None:
    """The last one: it ends the guest."""
    pod, _, _ = guest
    pod.terminate()
    assert pod.wait(60) == 0
    assert pod.termination()["reason"] == "Terminated"
    assert b"guest: shutting down (power button)" in pod.output.read_bytes()
