"""NIC messages to the launcher, and the VMI's status.interfaces."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, ip_address

import msgspec

from api.k8s.objects import Pod
from api.kubevirt.networks import pod_interface
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from handler.launchers import reports
from handler.launchers.reports import LauncherState, NicInfo, guest_interface
from handler.pod_network import interface_status
from handler.pod_network.interface_record import SavedRoute
from handler.pod_network.interface_request import InterfaceRequest
from handler.pod_network.resolv_conf import ResolverConfig
from handler.pod_network.setup import PodNetworkState
from handler.pod_network.vm_interface import Dhcpv4Lease, VmInterface
from handler.vmi import node_setup
from protos import launcher_pb2 as pb
from protos import limits
from tests.fakes import handler_objects

MAC, BLUE_MAC, VF_MAC = "52:54:00:00:00:01", "0a:00:00:00:00:05", "0a:00:00:00:00:06"
BLUE_IF, VF_IF = pod_interface("blue"), pod_interface("vf")
POD = VmInterface(
    InterfaceRequest("default", queues=2), "eth0", MAC, "k6t-eth0", tap="tap0", mtu=1450,
    addresses=(ip_address("10.1.1.5"), ip_address("fd00::5")),
    lease4=Dhcpv4Lease(IPv4Interface("10.0.2.2/24"), IPv4Address("10.0.2.1"), IPv4Address("10.0.2.1")),
    lease6=IPv6Address("fd10:0:2::2"),
)  # fmt: skip
BLUE = VmInterface(
    InterfaceRequest("blue", BLUE_IF),
    BLUE_IF,
    BLUE_MAC,
    "k6t-1",
    tap="tap1",
    mtu=1400,
    addresses=(ip_address("10.7.0.9"),),
    lease4=Dhcpv4Lease(
        IPv4Interface("10.7.0.9/32"),
        IPv4Address("169.254.75.10"),
        None,
        (SavedRoute(IPv4Network("169.254.1.1/32")), SavedRoute(IPv4Network("10.9.0.0/16"), IPv4Address("10.7.0.1"))),
    ),
)
VF = VmInterface(InterfaceRequest("vf", VF_IF, queues=0, hardware=True), VF_IF)
RESOLVER = ResolverConfig((IPv4Address("10.96.0.10"),), (IPv6Address("fd00::53"),), ("cluster.local",))
MADE = PodNetworkState((BLUE, POD, VF), RESOLVER)


def vmi(*interfaces):
    names = interfaces or ({"name": "blue", "bridge": {}}, {"name": "default"}, {"name": "vf", "sriov": {}})
    return codec.decode(VirtualMachineInstance, {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "a.b", "namespace": "ns"},
        "spec": {"domain": {"devices": {"interfaces": list(names)}}}})  # fmt: skip


RUNNING = LauncherState(
    state=pb.DOMAIN_STATE_RUNNING,
    nics=(NicInfo("default", MAC, True, 2), NicInfo("blue", BLUE_MAC, False, 1), NicInfo("vf", VF_MAC, True, 1)),
)


def status(*given):
    return [codec.to_dict(entry) for entry in interface_status.status(*given)]


def test_messages_in_the_order_of_the_vmi():
    blue, default, vf = interface_status.messages(vmi(), MADE)
    assert [message.name for message in (blue, default, vf)] == ["blue", "default", "vf"]
    assert (vf.tap, vf.HasField("dhcp4"), vf.HasField("dhcp6")) == ("", False, False)
    assert (blue.tap, blue.mac, blue.mtu, default.queues) == ("tap1", BLUE_MAC, 1400, 2)
    assert (blue.dhcp4.server, blue.dhcp4.address, blue.dhcp4.prefix, blue.dhcp4.router) == (
        "169.254.75.10", "10.7.0.9", 32, "")  # fmt: skip
    assert [(route.destination, route.gateway) for route in blue.dhcp4.routes] == [
        ("169.254.1.1/32", "0.0.0.0"), ("10.9.0.0/16", "10.7.0.1")]  # fmt: skip
    assert list(default.dhcp4.dns) == ["10.96.0.10"] and list(default.dhcp6.dns) == ["fd00::53"]
    assert list(blue.dhcp4.dns) == [] and blue.dhcp4.hostname == "a-b"


def test_a_subdomain_is_searched_first():
    in_cluster = ("ns.svc.cluster.local", "svc.cluster.local", "cluster.local")
    made = replace(MADE, resolver=RESOLVER._replace(search=in_cluster))

    def search(subdomain):
        document = vmi()
        spec = msgspec.structs.replace(document.spec, subdomain=subdomain)
        _, default, _ = interface_status.messages(msgspec.structs.replace(document, spec=spec), made)
        assert list(default.dhcp4.search) == list(default.dhcp6.search)
        return tuple(default.dhcp4.search)

    assert search("grp") == ("grp.ns.svc.cluster.local", *in_cluster)
    assert search(None) == in_cluster
    # With dnsPolicy None or Default there is no cluster domain to put it into.
    made = MADE
    assert search("grp") == ("cluster.local",)


def test_the_pods_address_comes_first():
    entries = status(vmi(), MADE, RUNNING, frozenset({BLUE_IF, VF_IF}))
    default, blue, vf = entries
    assert default == {
        "name": "default", "linkState": "up", "mac": MAC, "podInterfaceName": "eth0", "queueCount": 2,
        "ipAddress": "10.1.1.5", "ipAddresses": ["10.1.1.5", "fd00::5"], "infoSource": "domain"}  # fmt: skip
    assert (blue["ipAddress"], blue["linkState"], blue["infoSource"]) == ("10.7.0.9", "down", "domain, multus-status")
    assert (vf["mac"], vf["podInterfaceName"], "queueCount" in vf) == (VF_MAC, VF_IF, False)


def test_guest_agent_data_is_matched_by_mac():
    bare = PodNetworkState((POD, replace(BLUE, lease4=None, addresses=())), RESOLVER)
    inside = (
        guest_interface("eth0", MAC, ("10.0.2.2", "fe80::1")),
        guest_interface("eth1", BLUE_MAC, ("192.168.3.4",)),
        guest_interface("eth1.5", BLUE_MAC, ("192.168.5.4",)),
        guest_interface("docker0", "02:42:00:00:00:01", ("172.17.0.1",)),
        guest_interface("tun0", "", ()),
    )
    default, blue, *others = status(vmi(), bare, replace(RUNNING, interfaces=inside), frozenset({BLUE_IF}))
    # The guest agent cannot override the pod's address; on other networks only the guest knows its address.
    assert default["ipAddresses"] == ["10.1.1.5", "fd00::5"] and default["interfaceName"] == "eth0"
    assert blue["ipAddresses"] == ["192.168.3.4"] and blue["infoSource"] == "domain, guest-agent, multus-status"
    assert [(entry["interfaceName"], entry["infoSource"]) for entry in others] == [
        ("eth1.5", "guest-agent"), ("docker0", "guest-agent"), ("tun0", "guest-agent")]  # fmt: skip


def test_leased_address_is_reported():
    inside = (guest_interface("eth1", BLUE_MAC, ("203.0.113.1",)),)
    blue = status(vmi(), MADE, replace(RUNNING, interfaces=inside))[1]
    assert blue["ipAddresses"] == ["10.7.0.9"] and blue["interfaceName"] == "eth1"


def test_interface_being_unplugged_stays_until_it_leaves_the_domain():
    left = PodNetworkState((POD,), RESOLVER, going=("blue",))
    entries = status(vmi(), left, RUNNING)
    assert [entry["name"] for entry in entries] == ["default", "blue"] and entries[1]["mac"] == BLUE_MAC
    assert len(status(vmi(), left, replace(RUNNING, nics=RUNNING.nics[:1]))) == 1


def test_reported_nic_mac_does_not_override_configured_mac():
    lies = tuple(NicInfo(name, "02:66:66:66:66:66", True, 9) for name in ("default", "blue", "made-up", "kube-api"))
    default, blue, _ = status(vmi(), MADE, replace(RUNNING, nics=lies))
    assert (default["mac"], default["ipAddress"], default["name"]) == (MAC, "10.1.1.5", "default")
    assert blue["mac"] == BLUE_MAC


def test_link_state_defaults_to_the_spec():
    quiet = replace(RUNNING, nics=())
    wanted = vmi({"name": "blue", "bridge": {}, "state": "down"}, {"name": "default"}, {"name": "vf", "sriov": {}})
    assert [entry["linkState"] for entry in status(wanted, MADE, quiet)] == ["up", "down", "up"]


def test_nics_of_a_report_are_bounded_and_checked():
    report = pb.Report(state=pb.DOMAIN_STATE_RUNNING)
    for name in ("default", "default", "a b", "", "../x", "n" * 64, "ok"):
        report.nics.add(name=name, mac="52:54:00:AA:00:01" if name != "ok" else "$(x)", link_up=True, queues=2**32 - 1)
    assert reports.check(report).nics == (
        NicInfo("default", "52:54:00:aa:00:01", True, 256), NicInfo("ok", "", True, 256))  # fmt: skip
    for number in range(5000):
        report.nics.add(name=f"n{number}")
    assert len(reports.check(report).nics) <= limits.NICS


def test_host_device_mac_comes_from_network_status():
    pod = handler_objects.pod("uid")
    pod["metadata"]["annotations"] = {
        "k8s.v1.cni.cncf.io/network-status": json.dumps([{"interface": VF_IF, "mac": VF_MAC.upper()}])
    }
    assert node_setup._with_mac(VF, msgspec.convert(pod, Pod)).mac == VF_MAC
    pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"] = json.dumps([{"interface": VF_IF, "mac": "$"}])
    assert node_setup._with_mac(VF, msgspec.convert(pod, Pod)) == VF
    assert node_setup._with_mac(BLUE, msgspec.convert(pod, Pod)) is BLUE
