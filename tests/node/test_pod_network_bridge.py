"""The bridge binding on real namespaces: what moves into the guest, what stays out, what a killed handler leaves."""

import contextlib
import grp
import ipaddress
import json
import pathlib
import pwd
import struct

import pytest

from api.errors import NetworkError
from api.kubevirt.networks import pod_interface
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from handler.pod_network import interface_status, netns
from handler.pod_network import setup as network_setup
from handler.pod_network.interface_record import InterfaceRecord
from handler.pod_network.interface_request import InterfaceRequest, MasqueradeNetwork
from handler.pod_network.router_advertiser import Advertiser
from kit import proc
from tests.node import netlab, wire
from tests.node.netlab import NODE4, NODE6, POD4, POD6, Namespace
from tests.node.test_pod_network import ask, serving

pytestmark = pytest.mark.node
HOST = "/proc/self/ns/net"
UID = "7c4e-test"
BLUE, RED = pod_interface("blue"), pod_interface("red")
BLUE_SHORT = BLUE.removeprefix("pod")
BLUE_NODE, BLUE_POD = "172.31.5.1", "172.31.5.9"
OWN = InterfaceRequest("default")
SUBNETS = ipaddress.IPv4Network("10.0.2.0/24"), ipaddress.IPv6Network("fd10:0:2::/120")
MASQUERADE = InterfaceRequest("default", "", netlab.MAC, True, 1, MasqueradeNetwork(*SUBNETS))
VMI = codec.decode(VirtualMachineInstance, {
    "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm", "namespace": "ns"},
    "spec": {"domain": {"devices": {}}}})  # fmt: skip


@pytest.fixture
def records(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "nics"


def attach(
    pod: Namespace, records: pathlib.Path, *requests: InterfaceRequest, **options
) -> network_setup.PodNetworkState:
    """Attaches like a handler that has just started, without state in memory."""
    with proc.Process(pod.pid) as process:
        record = InterfaceRecord(UID, records)
        return proc.isolated_now(lambda: network_setup.attach(process, requests, record, UID, host=HOST, **options))


def plug(node: Namespace, pod: Namespace, name: str, address: str = "", mtu: int = 1500) -> None:
    """A secondary network, as a CNI plugin makes it."""
    node.run(
        f"ip link add v-{name[3:9]} type veth peer name {name} netns {pod.pid}; ip link set v-{name[3:9]} mtu {mtu} up"
    )
    pod.run(f"ip link set {name} mtu {mtu} up")
    if address:
        pod.run(f"ip addr add {address} dev {name}")


def named(look_up, number: int) -> str:
    """What `ip` calls a user or group: by its name, where this machine has one."""
    try:
        return look_up(number)[0]
    except KeyError:
        return str(number)


def mac_of(pod: Namespace, device: str) -> str:
    found: str = json.loads(pod.run(f"ip -j link show {device}"))[0]["address"]
    return found


def state(pod: Namespace) -> str:
    """The relevant state of a namespace as text; equal for equal states."""
    devices = []
    for link in json.loads(pod.run("ip -j -d addr show")):
        facts = {key: link.get(key) for key in ("ifname", "address", "mtu", "master", "link_type")}
        # A link-local address is there or not as the kernel finds time; whether there may be one is a sysctl.
        facts["addresses"] = sorted(
            f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if not each["local"].startswith("fe80")
        )
        facts["up"] = "UP" in link["flags"]
        facts["ipv6"] = pod.run(f"cat /proc/sys/net/ipv6/conf/{link['ifname']}/disable_ipv6").strip()
        devices.append(
            {key: value for key, value in facts.items() if not link["ifname"].startswith("tap") or key != "address"}
        )
    rules = pod.run("nft list ruleset")
    routes = sorted(line.strip() for line in pod.run("ip route; ip -6 route").splitlines() if "fe80" not in line)
    # Routes of a bridge without a carrier are marked so until the guest opens its tap.
    return json.dumps([sorted(devices, key=str), rules, [route.replace(" linkdown", "") for route in routes]], indent=1)


# ---- the pod's own network -------------------------------------------------------------------------------------------


def test_guest_takes_over_pod_address(records):
    with netlab.node_and_pod(ipv6=False, mtu=1400) as (node, pod):
        given = mac_of(pod, "eth0")
        pod.run("ip route add 10.66.0.0/16 via 192.168.77.7; ip route add 192.0.2.1 dev eth0")
        made = attach(pod, records, OWN)
        [attachment] = made.attachments
        assert (attachment.mac, attachment.tap, attachment.mtu, attachment.bridge) == (given, "tap0", 1400, "k6t-eth0")
        assert list(map(str, attachment.addresses)) == [POD4]
        left = json.loads(pod.run("ip -j addr show eth0"))[0]
        assert left["addr_info"] == [] and left["address"] != given and left["address"].startswith("06:")
        assert "inet6" not in pod.run("ip addr show k6t-eth0; ip addr show tap0; ip addr show eth0")
        lease = attachment.lease4
        assert lease is not None and str(lease.address) == f"{POD4}/24" and str(lease.router) == NODE4
        assert [(str(way.destination), way.gateway and str(way.gateway)) for way in lease.routes] == [
            ("192.0.2.1/32", None), ("10.66.0.0/16", "192.168.77.7")]  # fmt: skip
        with netlab.guest_of(pod, mac=given, masqueraded=False) as guest:
            guest.run(f"ip link set eth0 mtu 1400; ip addr add {POD4}/24 dev eth0; ip route add default via {NODE4}")
            with serving(guest, "0.0.0.0", 8080):
                assert ask(node, POD4, 8080) == f"seen {NODE4}"  # a probe, or a Service
            with serving(node, NODE4, 9090):
                assert ask(guest, NODE4, 9090) == f"seen {POD4}"
            assert given in node.run(f"ip neigh show {POD4}")


def test_pod_kernel_sends_nothing_on_guest_network(records):
    with netlab.node_and_pod() as (node, pod):
        given = mac_of(pod, "eth0")
        [attachment] = attach(pod, records, OWN).attachments
        bridge = mac_of(pod, "k6t-eth0")
        with (
            netlab.guest_of(pod, mac=given, masqueraded=False) as guest,
            wire.wires((node, "hlveth"), (guest, "eth0")) as (outside, inside),
        ):
            # The addresses of the guest, of the pod's bridge and of the masquerade gateway do not respond.
            for address in (POD4, "169.254.75.10", "10.0.2.1"):
                outside.send(wire.arp("06:aa:aa:aa:aa:aa", NODE4, address))
            # A frame to the bridge itself gets nowhere.
            outside.send(bytes.fromhex(bridge.replace(":", "")) + outside_frame(POD4)[6:])
            seen = inside.before(outside.mark())
            answers = outside.before(inside.mark())
            assert [frame[12:14] for frame in seen].count(b"\x08\x06") == 3  # the guest hears the questions
            assert not [frame for frame in answers if frame[6:12] != bytes.fromhex(given.replace(":", ""))]
            assert attachment.bridge_mac == bridge


def outside_frame(target: str) -> bytes:
    return wire.udp("06:aa:aa:aa:aa:aa", NODE4, target, 1000, 67, b"x")


def test_ipv6_address_of_pod_moves_to_guest(records):
    with netlab.node_and_pod() as (_, pod):
        [attachment] = attach(pod, records, OWN).attachments
        assert list(map(str, attachment.addresses)) == [POD4, POD6] and str(attachment.lease6) == POD6
        assert attachment.router6 is not None and not attachment.router6.leads_on
        assert "inet6" not in pod.run("ip addr show eth0")
        assert attach(pod, records, OWN).changed == ()


async def test_guest_gets_ipv6_address_and_no_false_router(records):
    with netlab.node_and_pod() as (node, pod):
        given = mac_of(pod, "eth0")
        made = attach(pod, records, OWN)
        [attachment] = made.attachments
        with (
            netlab.guest_of(pod, mac=given, masqueraded=False) as guest,
            wire.launchers_dhcp(pod, interface_status.messages(VMI, made)),
            wire.wires((node, "hlveth"), (guest, "eth0")) as ends,
        ):
            outside, inside = ends
            with proc.Process(pod.pid) as process:
                assert attachment.router6 is not None
                bridge, mac = attachment.bridge, attachment.bridge_mac
                advertiser = await Advertiser.start(process, bridge, attachment.router6, mac, attachment.mtu)
            try:
                link_local = inside_link_local(given)
                await until_async(lambda: "fe80" in pod.run("ip -6 addr show k6t-eth0 -tentative"))
                inside.send(solicit(given, link_local))
                answer = inside.until(lambda frame: (item := wire.datagram(frame)) is not None and item.to_port == 546)
            finally:
                advertiser.close()
            payload = wire.dhcp(answer)[-1].payload
            assert ipaddress.ip_address(POD6).packed in payload
            assert wire.dhcp(outside.before(inside.mark())) == []


def inside_link_local(mac: str) -> str:
    raw = bytearray(bytes.fromhex(mac.replace(":", "")))
    raw[0] ^= 2
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(raw[:3]) + b"\xff\xfe" + bytes(raw[3:])))


def solicit(mac: str, source: str) -> bytes:
    """A DHCPv6 Solicit to all servers (RFC 8415, 16.2)."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    duid = struct.pack("!HHHH", 1, 10, 3, 1) + hardware
    payload = b"\x01\x00\x00\x07" + duid + struct.pack("!HHIII", 3, 12, 1, 0, 0) + struct.pack("!HH", 14, 0)
    packed, target = ipaddress.ip_address(source).packed, ipaddress.ip_address("ff02::1:2").packed
    body = struct.pack("!HHHH", 546, 547, 8 + len(payload), 0) + payload
    pseudo = packed + target + struct.pack("!II", len(body), 17) + body + b"\0" * (len(body) % 2)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:6] + struct.pack("!H", ~total & 0xFFFF) + body[8:]
    head = struct.pack("!IHBB", 0x60000000, len(body), 17, 255)
    return bytes.fromhex("333300010002") + hardware + b"\x86\xdd" + head + packed + target + body


async def until_async(condition) -> None:
    import asyncio

    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come to that")


# ---- DHCP ------------------------------------------------------------------------------------------------------------


def test_dhcp_is_served_to_guest_and_not_forwarded(records):
    with netlab.node_and_pod(ipv6=False) as (node, pod):
        plug(node, pod, BLUE, f"{BLUE_POD}/24")
        pod.run(f"ip route add 172.16.0.0/16 via {BLUE_NODE}")
        made = attach(pod, records, MASQUERADE, InterfaceRequest("blue", BLUE))
        given = made.attachments[1].mac
        with (
            netlab.guest_of(pod, tap=f"tap{BLUE_SHORT}", mac=given, masqueraded=False) as guest,
            wire.launchers_dhcp(pod, interface_status.messages(VMI, made)),
            wire.wires((node, f"v-{BLUE[3:9]}"), (guest, "eth0")) as (outside, inside),
        ):
            # A foreign client with the guest's own MAC, and a foreign server with an answer to the guest.
            outside.send(wire.discover(given, 666))
            outside.send(wire.offer("06:bb:bb:bb:bb:bb", given, 1))
            inside.send(wire.discover(given, 1))
            seen = inside.until(lambda frame: bool(wire.dhcp([frame])))
            answer = wire.dhcp(seen)[-1]
            address, options = wire.lease(answer.payload)
            assert (answer.source, address, wire.transaction_of(answer.payload)) == ("169.254.75.10", BLUE_POD, 1)
            assert options[1] == bytes([255, 255, 255, 0]) and options[26] == struct.pack("!H", 1500)
            assert options[121] == bytes([16, 172, 16, 172, 31, 5, 1]) and 3 not in options and 6 not in options
            # Everything that either side heard, up to marks sent after it all.
            assert wire.dhcp(inside.before(outside.mark())) == []
            assert wire.dhcp(outside.before(inside.mark())) == []


def test_dhcp_is_forwarded_if_launcher_serves_none(records):
    with netlab.node_and_pod(ipv6=False) as (node, pod):
        plug(node, pod, BLUE)
        made = attach(pod, records, MASQUERADE, InterfaceRequest("blue", BLUE))
        given = made.attachments[1].mac
        assert made.attachments[1].lease4 is None
        with (
            netlab.guest_of(pod, tap=f"tap{BLUE_SHORT}", mac=given, masqueraded=False) as guest,
            wire.wires((node, f"v-{BLUE[3:9]}"), (guest, "eth0")) as (outside, inside),
        ):
            inside.send(wire.discover(given, 5))
            outside.until(lambda frame: bool(wire.dhcp([frame])))
            outside.send(wire.offer("06:bb:bb:bb:bb:bb", given, 5))
            inside.until(lambda frame: bool(wire.dhcp([frame])))


def test_guest_cannot_reach_pod_services(records):
    with netlab.node_and_pod(ipv6=False) as (node, pod):
        plug(node, pod, BLUE, f"{BLUE_POD}/24")
        made = attach(pod, records, MASQUERADE, InterfaceRequest("blue", BLUE))
        blue = made.attachments[1]
        with (
            netlab.guest_of(pod, tap=blue.tap, mac=blue.mac, masqueraded=False) as guest,
            serving(pod, "0.0.0.0", 7070),
        ):
            guest.run(f"ip addr add {BLUE_POD}/24 dev eth0; ip route add 169.254.75.10 dev eth0")
            guest.run(f"ip neigh add {POD4} lladdr {blue.bridge_mac} dev eth0; ip route add {POD4} dev eth0")
            assert ask(guest, "169.254.75.10", 7070).startswith("failed")
            assert ask(guest, POD4, 7070).startswith("failed")
            assert ask(pod, "127.0.0.1", 7070) != ""  # it listens (behind masquerade the guest would answer)


# ---- several at once -------------------------------------------------------------------------------------------------


def test_interfaces_of_different_bindings_work_together(records):
    with netlab.node_and_pod(mtu=1450) as (node, pod):
        plug(node, pod, BLUE, f"{BLUE_POD}/24", mtu=1400)
        plug(node, pod, RED, mtu=1300)
        node.run(f"ip addr add {BLUE_NODE}/24 dev v-{BLUE[3:9]}; ip addr add 172.31.6.1/24 dev v-{RED[3:9]}")
        hardware = InterfaceRequest("vf", pod_interface("vf"), hardware=True, queues=0)
        made = attach(
            pod, records, InterfaceRequest("blue", BLUE, queues=4), MASQUERADE, hardware, InterfaceRequest("red", RED)
        )
        blue, own, vf, red = made.attachments
        assert [each.mtu for each in made.attachments] == [1400, 1450, 0, 1300] and vf.tap == ""
        assert "multi_queue" in pod.run(f"ip -d link show {blue.tap}")
        assert "multi_queue" not in pod.run(f"ip -d link show {red.tap}")
        assert len({each.tap for each in made.attachments}) == 4 and len({blue.mac, own.mac, red.mac}) == 3
        details = pod.run(f"ip -d link show {red.tap}; ip link show {red.bridge}")
        owner = f"user {named(pwd.getpwuid, 107)} group {named(grp.getgrgid, 107)}"
        assert owner in details and details.count("mtu 1300") == 2
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(netlab.guest_of(pod))
            second = stack.enter_context(
                netlab.guest_of(pod, tap=blue.tap, mac=blue.mac, masqueraded=False, multi_queue=True)
            )
            third = stack.enter_context(netlab.guest_of(pod, tap=red.tap, mac=red.mac, masqueraded=False))
            second.run(f"ip addr add {BLUE_POD}/24 dev eth0")
            third.run("ip addr add 172.31.6.9/24 dev eth0")
            with serving(node, "0.0.0.0", 9090):
                assert ask(first, NODE4, 9090) == f"seen {POD4}"
                assert ask(second, BLUE_NODE, 9090) == f"seen {BLUE_POD}"
                assert ask(third, "172.31.6.1", 9090) == "seen 172.31.6.9"
        assert (
            attach(
                pod,
                records,
                InterfaceRequest("blue", BLUE, queues=4),
                MASQUERADE,
                hardware,
                InterfaceRequest("red", RED),
            ).changed
            == ()
        )


def test_interface_of_wrong_type_and_invalid_mac_are_refused(records):
    with netlab.node_and_pod() as (node, pod):
        pod.run(f"ip link add link eth0 name {BLUE} type macvlan mode bridge")
        with pytest.raises(NetworkError, match="is a macvlan device"):
            attach(pod, records, InterfaceRequest("blue", BLUE))
        plug(node, pod, RED)
        with pytest.raises(NetworkError, match="interface red: the network assigned"):
            attach(pod, records, InterfaceRequest("red", RED, "02:00:00:00:00:77", True))
        assert "k6t-" not in pod.run("ip link") and "tap" not in pod.run("ip link")


# ---- a handler that is killed ----------------------------------------------------------------------------------------


class Killed(BaseException):
    """Simulates a handler that is killed in the middle of the setup."""


def killed_after(steps: int):
    left = [steps]

    def perform(route, desired, step) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        netns.perform(route, desired, step)

    return perform


@contextlib.contextmanager
def complete_setup():
    with netlab.node_and_pod() as (node, pod):
        pod.run("ip link set eth0 address 0a:00:00:00:01:01")
        pod.run(f"ip route add 10.66.0.0/16 via 192.168.77.7; ip -6 route add fd66::/64 via {NODE6}")
        plug(node, pod, BLUE, f"{BLUE_POD}/24")
        pod.run(f"ip link set {BLUE} address 0a:00:00:00:01:02; ip route add 172.16.0.0/16 via {BLUE_NODE}")
        yield pod


def test_setup_killed_at_any_step_and_restarted_reaches_same_state(records, tmp_path):
    requests = (OWN, InterfaceRequest("blue", BLUE))
    with complete_setup() as pod:
        clean = attach(pod, tmp_path / "clean", *requests)
        expected = state(pod)
    assert len(clean.changed) > 20
    for steps in range(len(clean.changed)):
        with complete_setup() as pod:
            mine = tmp_path / f"killed{steps}"
            with pytest.raises(Killed):
                attach(pod, mine, *requests, perform=killed_after(steps))
            again = attach(pod, mine, *requests)
            assert again.attachments == clean.attachments, clean.changed[steps]
            assert state(pod) == expected, clean.changed[steps]
            assert attach(pod, mine, *requests).changed == ()


def test_setup_without_record_is_refused(records):
    with complete_setup() as pod:
        attach(pod, records, OWN)
        InterfaceRecord(UID, records).remove()
        before = state(pod)
        with pytest.raises(NetworkError):
            attach(pod, records, OWN)
        assert state(pod) == before


def test_missing_devices_are_recreated(records):
    with complete_setup() as pod:
        clean = attach(pod, records, OWN, InterfaceRequest("blue", BLUE))
        expected = state(pod)
        pod.run(f"nft delete table bridge hyperlet; ip link del tap{BLUE_SHORT}; ip link set eth0 nomaster; "
                "ip addr flush dev k6t-eth0; ip link set eth0 address 0a:00:00:00:01:01")  # fmt: skip
        assert "rules" in attach(pod, records, OWN, InterfaceRequest("blue", BLUE)).changed
        assert state(pod) == expected
        assert attach(pod, records, OWN, InterfaceRequest("blue", BLUE)).attachments == clean.attachments


# ---- plugging --------------------------------------------------------------------------------------------------------


def test_interface_is_plugged_unplugged_and_replugged(records):
    with netlab.node_and_pod() as (node, pod):
        attach(pod, records, MASQUERADE)
        rules = pod.run("nft list table inet hyperlet")
        with pytest.raises(network_setup.InterfaceMissing):
            attach(pod, records, MASQUERADE, InterfaceRequest("blue", BLUE))
        plug(node, pod, BLUE, f"{BLUE_POD}/24")
        given = mac_of(pod, BLUE)
        made = attach(pod, records, MASQUERADE, InterfaceRequest("blue", BLUE))
        assert made.attachments[1].fresh and made.attachments[1].mac == given and not made.attachments[0].fresh
        # Absent in the VMI, and the launcher still has it: everything stays, its guard too.
        left = attach(pod, records, MASQUERADE, used=("default", "blue", "made-up"))
        assert left.going == ("blue",) and f"tap{BLUE_SHORT}" in pod.run("ip link")
        assert f"tap{BLUE_SHORT}" in pod.run("nft list table bridge hyperlet")
        # The launcher does not answer: nothing is taken away.
        attach(pod, records, MASQUERADE, used=None)
        assert f"tap{BLUE_SHORT}" in pod.run("ip link")
        gone = attach(pod, records, MASQUERADE, used=("default",))
        assert gone.going == () and f"tap{BLUE_SHORT}" not in pod.run("ip link") + pod.run("nft list ruleset")
        assert f"k6t-{BLUE_SHORT}" not in pod.run("ip link") and BLUE in pod.run("ip link")
        # Before the network itself is left it comes back: what it had is not forgotten.
        again = attach(pod, records, MASQUERADE, InterfaceRequest("blue", BLUE)).attachments[1]
        assert (again.mac, str(again.addresses[0])) == (given, BLUE_POD)
        # The network is detached and attached again: another interface of the same name.
        attach(pod, records, MASQUERADE, used=("default",))
        pod.run(f"ip link del {BLUE}")
        plug(node, pod, BLUE, "172.31.5.10/24")
        anew = attach(pod, records, MASQUERADE, InterfaceRequest("blue", BLUE)).attachments[1]
        assert str(anew.addresses[0]) == "172.31.5.10" and anew.mac != given
        # The first interface is unaffected.
        assert pod.run("nft list table inet hyperlet") == rules


def test_host_network_namespace_is_refused(records):
    with netlab.node_and_pod() as (_, pod), proc.Process(pod.pid) as process:
        host = f"/proc/{pod.pid}/ns/net"
        with pytest.raises(NetworkError, match="node's network namespace"):
            proc.isolated_now(
                lambda: network_setup.attach(process, [OWN], InterfaceRecord(UID, records), UID, host=host)
            )
        assert "k6t-" not in pod.run("ip link") and POD4 in pod.run("ip addr") and not records.exists()
