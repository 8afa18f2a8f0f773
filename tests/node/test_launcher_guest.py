"""A launcher with a whole Linux in it: DHCP, the guest agent, cloud-init data, ACPI."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from guests import tiny
from guests.disk import KERNEL_ARGS
from protos import launcher_pb2 as pb
from tests.node import netlab
from tests.node.launcherlab import Pod, vmi, wait_for

pytestmark = pytest.mark.node
MAC = "02:00:00:00:00:01"
BRIDGE = """
ip link add k6t-eth0 type bridge
ip addr add 10.0.2.1/24 dev k6t-eth0
ip addr add fd10:0:2::1/120 dev k6t-eth0 nodad
ip link set k6t-eth0 up
ip tuntap add dev tap0 mode tap user 107 group 107 vnet_hdr
ip link set tap0 master k6t-eth0 up
sysctl -qw net.ipv4.ip_unprivileged_port_start=0
"""
NIC = pb.Nic(
    name="default", tap="tap0", mac=MAC, mtu=1400,
    dhcp4=pb.Dhcp4(device="k6t-eth0", server="10.0.2.1", address="10.0.2.2", prefix=24, router="10.0.2.1",
                   dns=["10.96.0.10"], search=["default.svc.cluster.local", "svc.cluster.local"], hostname="guest"),
    dhcp6=pb.Dhcp6(device="k6t-eth0", address="fd10:0:2::2", dns=["fd00::a"]),
)  # fmt: skip


def document() -> dict[str, Any]:
    return vmi(
        "guest",
        domain={
            "memory": {"guest": "128Mi"},
            "devices": {"interfaces": [{"name": "default", "masquerade": {}, "macAddress": MAC}]},
            "firmware": {"kernelBoot": {
                "kernelArgs": KERNEL_ARGS,
                "container": {"image": "tiny", "kernelPath": "/boot/kernel", "initrdPath": "/boot/initrd"},
            }},
        },
        networks=[{"name": "default", "pod": {}}],
        volumes=[{"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config\nhostname: from-cloud-init\n"}},
                 {"name": "data", "emptyDisk": {"capacity": "1Mi"}}],
    )  # fmt: skip


def ask(network: netlab.Namespace) -> dict[str, Any]:
    """The guest's own report, over its address."""
    try:
        return json.loads(network.run("exec 3<>/dev/null; curl -s --max-time 5 http://10.0.2.2/"))  # type: ignore[no-any-return]
    except (RuntimeError, ValueError):
        return {}


@pytest.fixture(scope="module")
def guest() -> Iterator[tuple[Pod, netlab.Namespace, pb.Report]]:
    built = tiny.build()
    network = netlab.Namespace()
    try:
        network.run(BRIDGE)
        with Pod() as pod:
            for name in ("kernel", "initrd"):
                pod.image("kernel-boot", (built.folder / name).read_bytes(), f"boot/{name}")
            pod.start(network.pid)
            report = pod.sync(document(), [NIC])
            wait_for(lambda: ask(network), "the guest to answer", 120)
            yield pod, network, report
    finally:
        network.close()


Guest = tuple[Pod, netlab.Namespace, pb.Report]


def test_the_guest_got_its_addresses(guest: Guest) -> None:
    _, network, _ = guest
    told = ask(network)
    (card,) = told["interfaces"]
    assert card["mac"] == MAC and card["mtu"] == 1400
    assert "10.0.2.2/24" in card["addresses"]
    assert told["search"] == ["default.svc.cluster.local", "svc.cluster.local"]


def test_the_guest_read_its_cloud_init_data(guest: Guest) -> None:
    _, network, _ = guest
    told = ask(network)
    assert told["hostname"] == "from-cloud-init"
    assert "instance-id" in told["cloudInit"]["meta-data"]
    assert {disk["bytes"] for disk in told["disks"]} >= {1 << 20}


def test_the_agent_tells_about_the_guest(guest: Guest) -> None:
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


def test_dhcp_and_the_agent_survive_the_server(guest: Guest) -> None:
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


def test_dhcpv6_is_answered_on_the_bridge(guest: Guest) -> None:
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


def test_the_guest_obeys_acpi(guest: Guest) -> None:
    """The last one: it ends the guest."""
    pod, _, _ = guest
    pod.terminate()
    assert pod.wait(60) == 0
    assert pod.termination()["reason"] == "Shutdown"
    assert b"guest: shutting down (power button)" in pod.output.read_bytes()
