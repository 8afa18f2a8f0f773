"""Interface requests of a VMI, and the steps from current to desired state of the pod's namespace."""

import ipaddress
from dataclasses import replace

import msgspec
import pytest

from api import defaults
from api.errors import NetworkError
from api.kubevirt.networks import pod_interface
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from handler.pod_network import bridge, nftables
from handler.pod_network import setup as network_setup
from handler.pod_network.interface_record import InterfaceRecord, SavedInterface, SavedRoute, sweep
from handler.pod_network.interface_request import GATEWAY_MAC, requests_of
from handler.pod_network.netns import CurrentState, DesiredState, NetnsStep, difference
from kit.netlink import nft
from kit.netlink.route import IFF_UP, Address, Link, Route

ETH0 = Link(2, "eth0", "0a:00:00:00:00:01", 1450, IFF_UP, 0, "veth")
LO = Link(1, "lo", "", 65536, IFF_UP, 0, "")
POD = Address(2, ipaddress.ip_interface("10.1.1.5/24"), 0)
POD6 = Address(2, ipaddress.ip_interface("fd00::5/64"), 0)
LINK_LOCAL = Address(2, ipaddress.ip_interface("fe80::1/64"), 253)
NIC = {"name": "default", "masquerade": {}}
POD_NETWORK = {"name": "default", "pod": {}}
BLUE = {"name": "blue", "multus": {"networkName": "blue"}}
BLUE_IF = pod_interface("blue")
UID = "0a1b-2c"


def vmi(interfaces, networks=(POD_NETWORK,), **devices):
    document = {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm", "namespace": "ns"},
        "spec": {"domain": {"devices": {"interfaces": list(interfaces), **devices}, "cpu": {"cores": 3}},
                 "networks": list(networks)},
    }  # fmt: skip
    return defaults.default_vmi(codec.decode(VirtualMachineInstance, document))


def current(*addresses, links=(LO, ETH0), routes=()):
    sysctls = {"net/ipv4/ip_forward": "0", "net/ipv6/conf/lo/disable_ipv6": "0"}
    return CurrentState({link.name: link for link in links}, addresses, routes, sysctls)


def composed(seen, requests, taken=None, going=None):
    return network_setup.compose(seen, requests, taken or {}, UID, going or {})


def words(seen, requests, **rest):
    return [str(step) for step in difference(seen, composed(seen, requests, **rest)[1])]


# ---- requests --------------------------------------------------------------------------------------------------------


def test_defaults():
    [request] = requests_of(vmi([NIC]))
    assert request.translated is not None and request.on_pod_network and not request.bridged
    assert (str(request.translated.subnet4), str(request.translated.subnet6), request.translated.ports) == (
        "10.0.2.0/24", "fd10:0:2::/120", ())  # fmt: skip
    assert request.mac.startswith("02:") and request.queues == 1


def test_ports_and_subnet_of_the_vmi():
    [request] = requests_of(
        vmi([NIC | {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}],
                    "portRanges": [{"start": 10, "end": 20, "protocol": "TCP"}]}],
            [{"name": "default", "pod": {"vmNetworkCIDR": "192.168.9.0/28"}}])
    )  # fmt: skip
    assert request.translated is not None
    assert [(port.protocol, port.first, port.last) for port in request.translated.ports] == [
        ("tcp", 80, 80), ("udp", 53, 53), ("tcp", 10, 20)]  # fmt: skip
    assert str(request.translated.subnet4) == "192.168.9.0/28"


def test_several_interfaces_of_several_kinds():
    found = requests_of(
        vmi([{"name": "blue", "bridge": {}, "macAddress": "02-AA-00-00-00-01"}, NIC | {"model": "e1000"},
             {"name": "vf", "sriov": {}}, {"name": "gone", "bridge": {}, "state": "absent"}],
            [BLUE, POD_NETWORK, {"name": "vf", "multus": {"networkName": "vf"}},
             {"name": "gone", "multus": {"networkName": "gone"}}], networkInterfaceMultiqueue=True)
    )  # fmt: skip
    assert [request.name for request in found] == ["blue", "default", "vf"]
    blue, default, vf = found
    assert (blue.interface, blue.mac, blue.insists, blue.queues) == (BLUE_IF, "02:aa:00:00:00:01", True, 3)
    assert (default.interface, default.queues) == ("", 1)  # only virtio has several
    assert vf.hardware and not vf.bridged and vf.interface == pod_interface("vf")


def test_derived_mac_is_not_insisted_on():
    found = defaults.mac_address(vmi([]).metadata, "blue")
    [request] = requests_of(vmi([{"name": "blue", "bridge": {}, "macAddress": found}], [BLUE]))
    assert request.mac == found and not request.insists


@pytest.mark.parametrize(
    ("nic", "networks", "message"),
    [
        (NIC | {"macAddress": "x; reboot"}, None, "not an Ethernet address"),
        (NIC | {"macAddress": GATEWAY_MAC}, None, "gateway's own"),
        (NIC, [{"name": "default", "pod": {"vmNetworkCIDR": "10.0.0.0/31"}}], "no room"),
        (NIC, [{"name": "default", "pod": {"vmNetworkCIDR": "10.0.0.0/24; drop"}}], "not a valid netmask"),
        (
            NIC,
            [{"name": "default", "multus": {"networkName": "br"}}],
            "masquerade is supported on the pod network only",
        ),
        ({"name": "default", "sriov": {}}, None, "no supported binding"),
        (NIC, [{"name": "other", "pod": {}}], "no pod or multus network"),
    ],
)
def test_unsupported_interface_raises_network_error(nic, networks, message):
    with pytest.raises(NetworkError, match=message):
        requests_of(vmi([nic], networks or [POD_NETWORK]))


def test_two_interfaces_on_the_pod_network_are_refused():
    wanted = vmi([NIC, {"name": "b", "bridge": {}}], [POD_NETWORK, {"name": "b", "pod": {}}])
    with pytest.raises(NetworkError, match="default, b: only one"):
        requests_of(wanted)


def test_too_many_interfaces_are_refused():
    names = [f"n{number}" for number in range(65)]
    wanted = vmi([{"name": name, "bridge": {}} for name in names],
                 [{"name": name, "multus": {"networkName": name}} for name in names])  # fmt: skip
    with pytest.raises(NetworkError, match="at most 64 are supported"):
        requests_of(wanted)


def test_no_interface():
    assert requests_of(vmi([], [], autoattachPodInterface=False)) == ()


# ---- masquerade ------------------------------------------------------------------------------------------------------


def masquerade():
    return requests_of(vmi([NIC]))


def test_steps_from_an_empty_namespace():
    seen = current(POD, POD6, LINK_LOCAL)
    steps = words(seen, masquerade())
    assert steps.index("rules") < steps.index("bridge k6t-eth0") < steps.index("tap tap0") < steps.index("join tap0")
    assert {"address k6t-eth0 10.0.2.1/24", "address k6t-eth0 fd10:0:2::1/120", "up k6t-eth0"} <= set(steps)
    assert "sysctl net/ipv4/ip_unprivileged_port_start" in steps
    assert not any(step.startswith(("empty", "mac")) for step in steps)  # the pod keeps what it has


def test_pod_without_ipv6_gets_none():
    [attachment], desired = composed(current(POD, LINK_LOCAL), masquerade())
    assert [str(address) for address in desired.devices[0].addresses] == ["10.0.2.1/24"]
    assert "net/ipv6/conf/all/forwarding" not in desired.sysctls
    assert attachment.lease6 is None and attachment.router6 is None and attachment.lease4 is not None


def test_no_steps_in_the_desired_state():
    bridge = Link(3, "k6t-eth0", GATEWAY_MAC, 1450, IFF_UP, 0, "bridge")
    tap = Link(4, "tap0", "0a:00:00:00:00:02", 1450, IFF_UP, 3, "tun")
    gateway = Address(3, ipaddress.ip_interface("10.0.2.1/24"), 0)
    seen = current(POD, gateway, links=(LO, ETH0, bridge, tap))
    _, desired = composed(seen, masquerade())
    done = replace(seen, sysctls=seen.sysctls | desired.sysctls | desired.devices[0].sysctls)
    assert difference(done, desired) == []
    other_mtu = {**done.links, "tap0": replace(tap, mtu=1500)}
    assert difference(replace(done, links=other_mtu), desired) == [NetnsStep("join", "tap0")]


def test_kernel_without_ipv6():
    seen = replace(current(POD), sysctls={"net/ipv4/ip_forward": "0"})
    assert not any("ipv6" in step for step in words(seen, masquerade()))


def test_pods_own_interface_may_have_another_name():
    odd = Link(7, "net0", "0a:00:00:00:00:09", 9000, IFF_UP, 0, "macvlan")
    seen = current(Address(7, ipaddress.ip_interface("10.1.1.9/24"), 0), links=(LO, odd))
    assert composed(seen, masquerade())[1].devices[0].bridge == "k6t-net0"


def test_pod_without_address():
    with pytest.raises(NetworkError, match="no interface with an address"):
        composed(current(LINK_LOCAL), masquerade())


@pytest.mark.parametrize("cidr", ["10.1.0.0/16", "10.1.1.4/30"])
def test_guest_subnet_containing_the_pods_address_is_rejected(cidr):
    wanted = requests_of(vmi([NIC], [{"name": "default", "pod": {"vmNetworkCIDR": cidr}}]))
    with pytest.raises(NetworkError, match=r"interface default.*set another vmNetworkCIDR"):
        composed(current(POD), wanted)


# ---- bridge ----------------------------------------------------------------------------------------------------------

BLUE_LINK = Link(5, BLUE_IF, "0a:00:00:00:00:05", 1400, IFF_UP, 0, "veth")
SHORT = BLUE_IF.removeprefix("pod")
BRIDGED = {"name": "blue", "bridge": {}}


def blue(**nic):
    return requests_of(vmi([BRIDGED | nic], [BLUE]))


def test_device_names_have_at_most_15_bytes():
    assert bridge.names_of(BLUE_IF, False) == (f"k6t-{SHORT}", f"tap{SHORT}")
    assert max(len(name) for name in bridge.names_of(BLUE_IF, False)) == 15
    assert bridge.names_of("eth0", True) == ("k6t-eth0", "tap0")


def test_saved_interface_has_mac_addresses_and_routes():
    routes = (
        Route(ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_address("169.254.1.1"), 2),
        Route(ipaddress.ip_network("169.254.1.1/32"), None, 2),
        Route(ipaddress.ip_network("10.1.1.0/24"), None, 2, protocol=2),  # the kernel's, with the address
        Route(ipaddress.ip_network("10.9.0.0/16"), ipaddress.ip_address("10.1.1.7"), 2),
        Route(ipaddress.ip_network("10.8.0.0/16"), ipaddress.ip_address("10.1.1.8"), 9),  # another device's
        Route(ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_address("10.1.1.9"), 2, metric=100),
    )
    passing = Address(2, ipaddress.ip_interface("fd00:1::9/64"), 0, flags=0)
    taken = bridge.saved_interface_of(current(POD, POD6, LINK_LOCAL, passing, routes=routes), ETH0)
    assert (taken.index, taken.mac) == (2, ETH0.mac)
    assert [str(address) for address in taken.addresses4 + taken.addresses6] == ["10.1.1.5/24", "fd00::5/64"]
    assert [(str(way.destination), way.gateway and str(way.gateway)) for way in taken.routes4] == [
        ("169.254.1.1/32", None), ("10.9.0.0/16", "10.1.1.7"), ("0.0.0.0/0", "169.254.1.1")]  # fmt: skip


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan"])
def test_macvlan_and_ipvlan_are_rejected(kind):
    with pytest.raises(NetworkError, match=f"is a {kind} device"):
        bridge.saved_interface_of(current(), replace(BLUE_LINK, kind=kind))


def test_bridge_with_address_takes_it_from_the_pod_and_gives_it_to_the_guest():
    taken = {
        BLUE_IF: SavedInterface(
            5,
            BLUE_LINK.mac,
            (ipaddress.IPv4Interface("10.7.0.9/24"),),
            (),
            (SavedRoute(ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv4Address("10.7.0.1")),),
        )
    }
    own = Address(5, ipaddress.ip_interface("10.7.0.9/24"), 0)
    seen = current(own, links=(LO, ETH0, BLUE_LINK))
    [attachment], desired = composed(seen, blue(), taken)
    assert (attachment.mac, attachment.mtu, attachment.tap) == (BLUE_LINK.mac, 1400, f"tap{SHORT}")
    assert attachment.lease4 is not None and str(attachment.lease4.router) == "10.7.0.1"
    assert str(attachment.lease4.address) == "10.7.0.9/24" and attachment.lease4.routes == ()
    steps = [str(step) for step in difference(seen, desired)]
    order = ["rules", f"bridge k6t-{SHORT}", f"empty {BLUE_IF} 10.7.0.9/24", f"join {BLUE_IF}", f"up k6t-{SHORT}"]
    assert [step for step in steps if step in order] == order
    assert f"neighbour k6t-{SHORT} 10.7.0.9" in steps and f"sysctl net/ipv6/conf/{BLUE_IF}/disable_ipv6" in steps
    mac = next(step.value for step in difference(seen, desired) if step.verb == "mac")
    assert mac != BLUE_LINK.mac and mac.startswith("06:")


def test_bridge_without_address_serves_nothing_and_lets_dhcp_pass():
    seen = current(links=(LO, ETH0, BLUE_LINK))
    [attachment], desired = composed(seen, blue(), {BLUE_IF: SavedInterface(5, BLUE_LINK.mac)})
    assert attachment.lease4 is attachment.lease6 is attachment.router6 is None and attachment.addresses == ()
    [table] = desired.tables
    rules = {chain.name: chain.rules for chain in table.chains()}
    assert rules["forward"] == [] and rules["output"] == [(*nft.output_interface(BLUE_IF), nft.drop())]


def test_missing_interface_raises_interface_missing():
    with pytest.raises(network_setup.InterfaceMissing, match=f"interface blue: the pod has no interface {BLUE_IF}"):
        composed(current(POD), blue())


def test_network_assigning_another_mac_than_requested_is_rejected():
    [request] = blue(macAddress="02:00:00:00:00:77")
    with pytest.raises(NetworkError, match=f"interface blue.*{BLUE_LINK.mac} instead of 02:00:00:00:00:77"):
        bridge.guest_mac(request, BLUE_IF, BLUE_LINK.mac)
    assert bridge.guest_mac(request, BLUE_IF, request.mac) == request.mac
    # The pod network takes no requested MAC.
    assert bridge.guest_mac(replace(request, interface=""), "eth0", ETH0.mac) == request.mac
    assert bridge.guest_mac(replace(request, insists=False), BLUE_IF, BLUE_LINK.mac) == BLUE_LINK.mac


def test_recorded_interface_is_identified_by_index_and_mac():
    [request] = blue()
    seen = current(links=(LO, BLUE_LINK))
    old = SavedInterface(5, "0a:00:00:00:00:99")
    assert bridge.recorded(seen, request, BLUE_LINK, old) is old
    assert bridge.recorded(seen, request, BLUE_LINK, None).mac == BLUE_LINK.mac
    had = SavedInterface(5, BLUE_LINK.mac)
    emptied = replace(BLUE_LINK, mac=bridge.local_mac(UID, BLUE_IF))
    assert bridge.is_same(BLUE_LINK, had, UID) and bridge.is_same(emptied, had, UID)
    assert not bridge.is_same(BLUE_LINK, old, UID)
    assert not bridge.is_same(replace(BLUE_LINK, index=4), had, UID)
    over = Link(8, f"k6t-{SHORT}", GATEWAY_MAC, 1400, IFF_UP, 0, "bridge")
    under = replace(BLUE_LINK, master=8)
    with pytest.raises(NetworkError, match=r"saved addresses and routes of .* are lost"):
        bridge.recorded(current(links=(LO, under, over)), request, under, None)


def test_pod_interface_without_address_is_found_by_its_record():
    requests = requests_of(vmi([{"name": "default", "bridge": {}}, BRIDGED], [POD_NETWORK, BLUE]))
    taken = {BLUE_IF: SavedInterface(5, "x"), "net0": SavedInterface(7, "y")}
    net0 = Link(7, "net0", "06:00:00:00:00:01", 1500, IFF_UP, 8, "veth")
    seen = current(Address(5, ipaddress.ip_interface("10.7.0.9/24"), 0), links=(LO, BLUE_LINK, net0))
    assert network_setup.link_of(seen, requests[0], requests, taken) is net0


def test_obsolete_devices_are_deleted_first_unless_in_use():
    bridge = Link(8, f"k6t-{SHORT}", GATEWAY_MAC, 1400, IFF_UP, 0, "bridge")
    tap = Link(9, f"tap{SHORT}", "06:00:00:00:00:02", 1400, IFF_UP, 8, "tun")
    foreign = Link(10, "tapestry", "06:00:00:00:00:03", 1400, IFF_UP, 0, "veth")
    seen = current(links=(LO, ETH0, BLUE_LINK, bridge, tap, foreign))
    assert [str(step) for step in difference(seen, DesiredState())] == [f"delete k6t-{SHORT}", f"delete tap{SHORT}"]
    going = {"blue": (f"k6t-{SHORT}", f"tap{SHORT}")}
    _, desired = composed(seen, (), {BLUE_IF: SavedInterface(5, "x", (ipaddress.IPv4Interface("10.7.0.9/24"),))}, going)
    assert not any(step.verb == "delete" for step in difference(seen, desired))
    # Its guard stays with it.
    rules = {chain.name: chain.rules for chain in desired.tables[0].chains()}
    assert rules["forward"] == [
        (*nft.input_interface(end), *nft.ether_type(0x0800), *nft.to_ports(nft.UDP, port, port), nft.drop())
        for port in (67, 68)
        for end in (BLUE_IF, f"tap{SHORT}")
    ]


def test_sriov_interface_creates_no_devices():
    requests = requests_of(vmi([{"name": "vf", "sriov": {}}], [{"name": "vf", "multus": {"networkName": "vf"}}]))
    [attachment], desired = composed(current(), requests)
    assert attachment.tap == "" and desired.devices == () and desired.tables == ()


@pytest.mark.parametrize("device", ['eth0" drop', "a b", "x" * 16, ""])
def test_unsafe_device_names_raise_network_error(device):
    for names in ((device, "tap0"), ("eth0", device)):
        with pytest.raises(NetworkError, match="has an unsupported name"):
            nftables.BridgedInterface(*names)


# ---- the record ------------------------------------------------------------------------------------------------------

TAKEN = {
    "eth0": SavedInterface(
        2,
        "0a:00:00:00:00:01",
        (ipaddress.IPv4Interface("10.1.1.5/24"),),
        (ipaddress.IPv6Interface("fd00::5/64"),),
        (
            SavedRoute(ipaddress.IPv4Network("10.9.0.0/16")),
            SavedRoute(ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv4Address("10.1.1.1")),
        ),
    )
}


def test_record_round_trips_with_mode_0600(tmp_path):
    record = InterfaceRecord(UID, tmp_path / "nics")
    assert record.read() == {}
    record.write(TAKEN)
    assert record.read() == TAKEN
    assert (tmp_path / "nics").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "nics" / f"{UID}.json").stat().st_mode & 0o777 == 0o600
    record.remove()
    record.remove()
    assert list((tmp_path / "nics").iterdir()) == []


def test_record_write_ignores_links_and_leftover_drafts(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / f"{UID}.new").symlink_to(victim)
    record = InterfaceRecord(UID, tmp_path)
    record.write(TAKEN)
    assert victim.read_text() == "untouched" and record.read() == TAKEN
    (tmp_path / f"{UID}.new").write_text("half of")
    assert record.read() == TAKEN


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"eth0": {"index": 2}}', '{"eth0": {"index": 2, "mac": "x", "addresses4": ["y"]}}']
)
def test_unreadable_record_is_empty(tmp_path, content):
    (tmp_path / f"{UID}.json").write_text(content)
    assert InterfaceRecord(UID, tmp_path).read() == {}


@pytest.mark.parametrize("uid", ["../../etc/passwd", "", "a/b", ".", "x" * 64])
def test_invalid_pod_uid_raises_network_error(tmp_path, uid):
    with pytest.raises(NetworkError, match="not a pod UID"):
        InterfaceRecord(uid, tmp_path)


def test_sweep_removes_records_of_deleted_pods(tmp_path):
    for uid in ("a1", "b2"):
        InterfaceRecord(uid, tmp_path).write(TAKEN)
    assert sweep(tmp_path, {"b2"}) == 1 and sweep(tmp_path / "none", ()) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b2.json"]


def test_record_is_plain_json(tmp_path):
    record = InterfaceRecord(UID, tmp_path)
    record.write(TAKEN)
    assert msgspec.json.decode((tmp_path / f"{UID}.json").read_bytes())["eth0"]["routes4"][1] == {
        "destination": "0.0.0.0/0", "gateway": "10.1.1.1"}  # fmt: skip
