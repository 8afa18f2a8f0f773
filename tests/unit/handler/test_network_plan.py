"""What a VMI asks of the pod network, and the steps from what is to what should be."""

import ipaddress
from dataclasses import replace

import pytest

from api import codec, defaults
from api.errors import NetworkError
from api.vmi import VirtualMachineInstance
from handler import network
from kit.netlink import Address, Link

ETH0 = Link(2, "eth0", "0a:00:00:00:00:01", 1450, True, 0, "veth")
LO = Link(1, "lo", "", 65536, True, 0, "")
POD = Address(2, ipaddress.ip_interface("10.1.1.5/24"), 0)
POD6 = Address(2, ipaddress.ip_interface("fd00::5/64"), 0)
LINK_LOCAL = Address(2, ipaddress.ip_interface("fe80::1/64"), 253)


def vmi(interfaces, networks=({"name": "default", "pod": {}},)):
    document = {
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "vm", "namespace": "ns"},
        "spec": {"domain": {"devices": {"interfaces": list(interfaces)}}, "networks": list(networks)},
    }  # fmt: skip
    return defaults.default_vmi(codec.decode(VirtualMachineInstance, document))


NIC = {"name": "default", "masquerade": {}}


def current(*addresses, links=(LO, ETH0)):
    sysctls = dict.fromkeys(["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"], "0")
    return network.Current({link.name: link for link in links}, addresses, sysctls)


def test_defaults():
    request = network.request_of(vmi([NIC]))
    assert request is not None
    assert (str(request.subnet4), str(request.subnet6), request.ports, request.queues) == (
        "10.0.2.0/24", "fd10:0:2::/120", (), 1)  # fmt: skip
    assert request.mac.startswith("02:")


def test_ports_and_subnet_of_the_vmi():
    request = network.request_of(
        vmi([NIC | {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}],
            [{"name": "default", "pod": {"vmNetworkCIDR": "192.168.9.0/28"}}])
    )  # fmt: skip
    assert request is not None
    assert [(port.protocol, port.first) for port in request.ports] == [("tcp", 80), ("udp", 53)]
    assert str(request.subnet4) == "192.168.9.0/28"


@pytest.mark.parametrize(
    ("nic", "networks", "words"),
    [
        (NIC | {"macAddress": "x; reboot"}, None, "not an Ethernet address"),
        (NIC | {"macAddress": network.GATEWAY_MAC}, None, "gateway's own"),
        (NIC, [{"name": "default", "pod": {"vmNetworkCIDR": "10.0.0.0/31"}}], "no room"),
        (NIC, [{"name": "default", "pod": {"vmNetworkCIDR": "10.0.0.0/24; drop"}}], "not a valid netmask"),
        (NIC, [{"name": "default", "multus": {"networkName": "br"}}], "only the pod network"),
        ({"name": "default", "bridge": {}}, None, "only the masquerade binding"),
    ],
)
def test_what_cannot_be_had_is_refused_in_words(nic, networks, words):
    with pytest.raises(NetworkError, match=words):
        network.request_of(vmi([nic], networks or [{"name": "default", "pod": {}}]))


def test_two_interfaces_are_refused():
    wanted = vmi([NIC, {"name": "b", "masquerade": {}}], [{"name": "default", "pod": {}}, {"name": "b", "pod": {}}])
    with pytest.raises(NetworkError, match="one network interface"):
        network.request_of(wanted)


def test_no_interface():
    document = vmi([NIC])
    bare = replace_interfaces(document)
    assert network.request_of(bare) is None


def replace_interfaces(document):
    import msgspec

    devices = msgspec.structs.replace(document.spec.domain.devices, interfaces=None)
    domain = msgspec.structs.replace(document.spec.domain, devices=devices)
    return msgspec.structs.replace(document, spec=msgspec.structs.replace(document.spec, domain=domain, networks=None))


def request():
    found = network.request_of(vmi([NIC]))
    assert found is not None
    return found


def test_from_nothing():
    seen = current(POD, POD6, LINK_LOCAL)
    steps = network.difference(seen, network.compose(seen, request()))
    assert steps[:2] == ["bridge", "tap"] and steps[-1] == "rules"
    assert {"address 10.0.2.1/24", "address fd10:0:2::1/120", "bridge up", "tap up"} <= set(steps)
    assert "sysctl net/ipv4/ip_unprivileged_port_start" in steps


def test_pod_without_ipv6_gets_none():
    seen = current(POD, LINK_LOCAL)
    desired = network.compose(seen, request())
    assert [str(address) for address in desired.addresses] == ["10.0.2.1/24"]
    assert "net/ipv6/conf/all/forwarding" not in desired.sysctls


def test_nothing_to_do():
    bridge = Link(3, "k6t-eth0", network.GATEWAY_MAC, 1450, True, 0, "bridge")
    tap = Link(4, "tap0", "0a:00:00:00:00:02", 1450, True, 3, "tun")
    gateway = Address(3, ipaddress.ip_interface("10.0.2.1/24"), 0)
    seen = current(POD, gateway, links=(LO, ETH0, bridge, tap))
    desired = network.compose(seen, request())
    done = replace(seen, sysctls=desired.sysctls | {"net/ipv6/conf/all/forwarding": "0"})
    assert network.difference(done, desired) == []
    other_mtu = {**done.links, "tap0": replace(tap, mtu=1500)}
    assert network.difference(replace(done, links=other_mtu), desired) == ["tap up"]


def test_kernel_without_ipv6():
    seen = replace(current(POD), sysctls={"net/ipv4/ip_forward": "0"})
    steps = network.difference(seen, network.compose(seen, request()))
    assert not any("ipv6" in step for step in steps)


def test_pods_own_interface_may_have_another_name():
    odd = Link(7, "net0", "0a:00:00:00:00:09", 9000, True, 0, "macvlan")
    seen = current(Address(7, ipaddress.ip_interface("10.1.1.9/24"), 0), links=(LO, odd))
    assert network.compose(seen, request()).bridge == "k6t-net0"


def test_pod_without_address():
    with pytest.raises(NetworkError, match="no interface with an address"):
        network.compose(current(LINK_LOCAL), request())


@pytest.mark.parametrize("cidr", ["10.1.0.0/16", "10.1.1.4/30"])
def test_guests_subnet_over_the_pods_address(cidr):
    wanted = replace(request(), subnet4=ipaddress.IPv4Network(cidr))
    with pytest.raises(NetworkError, match="choose another"):
        network.compose(current(POD), wanted)
