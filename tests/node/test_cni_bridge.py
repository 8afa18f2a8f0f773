"""cnv-bridge on real namespaces: every field that needs no VLAN, every verb."""

import contextlib
import json
from typing import Any

import pytest

from cni.host import host_name
from kit.netlink import route
from tests.node import cnilab
from tests.node.cnilab import Lab, bridge_conf, client, host_local, lab, passing_macs

pytestmark = pytest.mark.node
OUTSIDE = host_name("net", "c1", "eth0")
__all__ = ["client", "lab"]  # fixtures


def test_add_creates_bridge_and_connects_container(lab: Lab) -> None:
    where = lab.container()
    result = lab.call("cnv-bridge", "ADD", bridge_conf(), where)
    bridge, port, inside = result["interfaces"]
    links, own = lab.node.links(), where.links()
    assert (bridge["name"], port["name"], inside["name"]) == ("br1", OUTSIDE, "eth0")
    assert inside["sandbox"] == where.path and "sandbox" not in port
    assert bridge["mac"] == links["br1"].mac and port["mac"] == links[OUTSIDE].mac and inside["mac"] == own["eth0"].mac
    assert links[OUTSIDE].master == links["br1"].index and links["br1"].kind == "bridge"
    assert links["br1"].up and links[OUTSIDE].up and own["eth0"].up
    assert links[OUTSIDE].alias.endswith(" net c1 eth0")
    assert "ips" not in result and result["dns"] == {}
    lab.call("cnv-bridge", "DEL", bridge_conf(), where)
    lab.clean(but={"br1"})
    assert set(where.links()) == {"lo"}


def test_bridge_without_name_is_cni0(lab: Lab) -> None:
    conf = bridge_conf()
    del conf["bridge"]
    assert lab.call("cnv-bridge", "ADD", conf, lab.container())["interfaces"][0]["name"] == "cni0"


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_result_has_format_of_cni_version(lab: Lab, version: str) -> None:
    where = lab.container()
    conf = bridge_conf(cniVersion=version, ipam=host_local(lab, "10.9.0.0/24"))
    result = lab.call("cnv-bridge", "ADD", conf, where)
    assert result["cniVersion"] == version
    (ip,) = result["ips"]
    assert ip.get("version") == ("4" if version < "1" else None)
    assert (ip["interface"], ip["address"]) == (2, "10.9.0.2/24")
    assert result["interfaces"][2].get("mtu") == (1500 if version == "1.1.0" else None)
    if version >= "0.4.0":
        lab.call("cnv-bridge", "CHECK", conf | {"prevResult": result}, where)
    lab.call("cnv-bridge", "DEL", conf, where)
    assert not cnilab.reserved(lab)


def test_mtu_is_from_config_or_bridge(lab: Lab) -> None:
    lab.node.run("ip link add br1 mtu 1400 type bridge; ip link set br1 up")
    where = lab.container()
    lab.call("cnv-bridge", "ADD", bridge_conf(), where)
    lab.call("cnv-bridge", "ADD", bridge_conf(mtu=1300), where, CNI_IFNAME="eth1")
    links = where.links()
    assert (links["eth0"].mtu, links["eth1"].mtu) == (1400, 1300)
    assert lab.node.links()[host_name("net", "c1", "eth1")].mtu == 1300
    where = lab.container()
    lab.call("cnv-bridge", "ADD", bridge_conf(bridge="br2", mtu=1350), where, CNI_CONTAINERID="c2")
    assert lab.node.links()["br2"].mtu == 1350


def test_last_mac_source_takes_precedence(lab: Lab) -> None:
    steps: list[tuple[str | None, dict[str, Any]]] = [
        ("MAC=02:00:00:00:00:01;IgnoreUnknown=1", {}),
        ("MAC=02:00:00:00:00:01", {"args": {"cni": {"mac": "02:00:00:00:00:02"}}}),
        (
            "MAC=02:00:00:00:00:01",
            {"args": {"cni": {"mac": "02:00:00:00:00:02"}}, "runtimeConfig": {"mac": "02-00-00-00-00-03"}},
        ),
    ]
    for number, (arguments, fields) in enumerate(steps, 1):
        where = lab.container()
        changes = {"CNI_CONTAINERID": f"c{number}", "CNI_ARGS": arguments}
        result = lab.call("cnv-bridge", "ADD", bridge_conf(**fields), where, **changes)
        assert result["interfaces"][2]["mac"] == where.links()["eth0"].mac == f"02:00:00:00:00:0{number}"


def test_macspoofchk_passes_only_mac_of_interface(lab: Lab) -> None:
    first, second = lab.container(), lab.container()
    lab.call("cnv-bridge", "ADD", bridge_conf(macspoofchk=True), first)
    lab.call("cnv-bridge", "ADD", bridge_conf(), second, CNI_CONTAINERID="c2")
    mine, theirs = first.links()["eth0"].mac, second.links()["eth0"].mac
    assert passing_macs(first, "eth0", ["02:66:66:66:66:66", theirs, mine], second, "eth0") == {mine}
    assert passing_macs(second, "eth0", ["02:66:66:66:66:66", theirs], first, "eth0") == {"02:66:66:66:66:66", theirs}
    assert OUTSIDE in lab.ruleset()
    lab.call("cnv-bridge", "DEL", bridge_conf(macspoofchk=True), first)
    assert OUTSIDE not in lab.ruleset()


def test_macspoofchk_uses_mac_set_by_cnv_tuning(lab: Lab) -> None:
    first, second = lab.container(), lab.container()
    lab.call("cnv-bridge", "ADD", bridge_conf(macspoofchk=True), first)
    lab.call("cnv-bridge", "ADD", bridge_conf(), second, CNI_CONTAINERID="c2")
    old, new = first.links()["eth0"].mac, "02:00:00:00:00:99"
    tuning = cnilab.tuning_conf(lab, first, mac=new)
    lab.call("cnv-tuning", "ADD", tuning, first)
    assert passing_macs(first, "eth0", [old, "02:66:66:66:66:66", new], second, "eth0") == {new}
    lab.call("cnv-tuning", "DEL", tuning, first)
    assert passing_macs(first, "eth0", [new, old], second, "eth0") == {old}


def test_isolated_ports_receive_only_from_other_ports(lab: Lab) -> None:
    spaces = [lab.container() for _ in range(3)]
    for number, each in enumerate(spaces):
        conf = bridge_conf(portIsolation=number < 2)
        lab.call("cnv-bridge", "ADD", conf, each, CNI_CONTAINERID=f"c{number}")
    first, second, third = spaces
    mac = first.links()["eth0"].mac
    with contextlib.closing(second.packets("eth0")) as isolated:
        assert passing_macs(first, "eth0", [mac], third, "eth0") == {mac}
        isolated.setblocking(False)
        with pytest.raises(BlockingIOError):
            isolated.recv(2048)


def test_hairpin_returns_frames_to_source_port(lab: Lab) -> None:
    for number, hairpin in enumerate((True, False)):
        where = lab.container()
        lab.call("cnv-bridge", "ADD", bridge_conf(hairpinMode=hairpin), where, CNI_CONTAINERID=f"c{number}")
        port = lab.node.links()[host_name("net", f"c{number}", "eth0")]
        assert port.hairpin is hairpin


def test_promisc_mode_is_set_on_bridge(lab: Lab) -> None:
    where = lab.container()
    lab.call("cnv-bridge", "ADD", bridge_conf(promiscMode=True), where)
    assert "PROMISC" in lab.node.run("ip link show br1")


def test_gateway_has_first_address_of_subnet_and_forwards(lab: Lab) -> None:
    lab.node.run("echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding")
    where = lab.container()
    conf = bridge_conf(isGateway=True, ipam=host_local(lab, "10.9.0.0/24", "fd99::/64"))
    result = lab.call("cnv-bridge", "ADD", conf, where)
    assert [ip["gateway"] for ip in result["ips"]] == ["10.9.0.1", "fd99::1"]
    assert "routes" not in result
    shown = lab.node.run("ip addr show br1; cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding")
    assert "10.9.0.1/24" in shown and "fd99::1/64" in shown and shown.endswith("1\n1\n")
    assert where.reaches("10.9.0.1") and where.reaches("fd99::1")


def test_default_gateway_adds_default_route(lab: Lab) -> None:
    where = lab.container()
    conf = bridge_conf(isDefaultGateway=True, ipam=host_local(lab, "10.9.0.0/24", "fd99::/64"))
    result = lab.call("cnv-bridge", "ADD", conf, where)
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}, {"dst": "::/0", "gw": "fd99::1"}]
    assert "default via 10.9.0.1" in where.run("ip route") and "default via fd99::1" in where.run("ip -6 route")


def test_other_gateway_address_is_kept_unless_forced(lab: Lab) -> None:
    lab.node.run("ip link add br1 type bridge; ip link set br1 up; ip addr add 10.9.0.77/24 dev br1")
    where = lab.container()
    conf = bridge_conf(isGateway=True, ipam=host_local(lab, "10.9.0.0/24"))
    error = lab.refusal("cnv-bridge", "ADD", conf, where)
    assert error["code"] == 100 and "forceAddress" in error["msg"]
    lab.clean(but={"br1"})
    assert not cnilab.reserved(lab) and set(where.links()) == {"lo"}
    lab.call("cnv-bridge", "ADD", conf | {"forceAddress": True}, where)
    shown = lab.node.run("ip addr show br1")
    assert "10.9.0.1/24" in shown and "10.9.0.77" not in shown


@pytest.mark.parametrize("backend", [None, "nftables", "iptables"])
def test_masqueraded_traffic_has_node_address(lab: Lab, backend: str | None) -> None:
    where, outside = lab.container(), lab.container()
    with contextlib.closing(lab.node.routes()) as one:
        one.do(route.new_veth(route.Veth("up0", "fe:00:00:00:00:01", "up1", "02:00:00:00:00:01", outside.fd, 1500)))
    lab.node.run("ip link set up0 up; ip addr add 192.0.2.1/24 dev up0")
    outside.run("ip link set lo up; ip link set up1 up; ip addr add 192.0.2.2/24 dev up1")
    conf = bridge_conf(isDefaultGateway=True, ipMasq=True, ipMasqBackend=backend, ipam=host_local(lab, "10.9.0.0/24"))
    result = lab.call("cnv-bridge", "ADD", conf, where)
    assert where.reaches("192.0.2.2")  # which knows no way back to 10.9.0.0/24
    lab.call("cnv-bridge", "CHECK", conf | {"prevResult": result}, where)
    lab.call("cnv-bridge", "DEL", conf, where)
    assert "masquerade" not in lab.ruleset()


def test_duplicate_address_detection_runs_only_if_enabled(lab: Lab) -> None:
    where = lab.container()
    lab.call("cnv-bridge", "ADD", bridge_conf(ipam=host_local(lab, "fd99::/64")), where)
    assert "nodad" in where.run("ip -6 addr show eth0 scope global")
    other = lab.container()
    lab.call(
        "cnv-bridge", "ADD", bridge_conf(enabledad=True, ipam=host_local(lab, "fd99::/64")), other, CNI_CONTAINERID="c2"
    )
    shown = other.run("ip -6 addr show eth0")
    assert "nodad" not in shown and "tentative" not in shown
    taken = lab.container()
    ipam = {"type": "static", "addresses": [{"address": "fd99::2/64"}]}
    error = lab.refusal("cnv-bridge", "ADD", bridge_conf(enabledad=True, ipam=ipam), taken, CNI_CONTAINERID="c3")
    assert "already in use" in error["msg"] and set(taken.links()) == {"lo"}


def test_container_interface_stays_down_if_configured(lab: Lab) -> None:
    where = lab.container()
    lab.call("cnv-bridge", "ADD", bridge_conf(disableContainerInterface=True), where)
    assert not where.links()["eth0"].up


def test_static_ipam_sets_addresses_routes_and_dns(lab: Lab) -> None:
    where = lab.container()
    ipam = {
        "type": "static",
        "addresses": [{"address": "10.9.0.7/24", "gateway": "10.9.0.254"}],
        "routes": [{"dst": "198.51.100.0/24"}, {"dst": "203.0.113.0/24", "gw": "10.9.0.9"}],
        "dns": {"nameservers": ["10.9.0.53"]},
    }
    result = lab.call("cnv-bridge", "ADD", bridge_conf(ipam=ipam), where)
    assert result["dns"] == {"nameservers": ["10.9.0.53"]}
    shown = where.run("ip route")
    assert "198.51.100.0/24 via 10.9.0.254" in shown and "203.0.113.0/24 via 10.9.0.9" in shown
    own = lab.call(
        "cnv-bridge", "ADD", bridge_conf(ipam=ipam, dns={"domain": "x.test"}), lab.container(), CNI_CONTAINERID="c2"
    )
    assert own["dns"] == {"domain": "x.test"}


@pytest.mark.parametrize("ipam", [{}, None, {"type": ""}])
def test_add_without_ipam_sets_no_addresses(lab: Lab, ipam: Any) -> None:
    where = lab.container()
    assert "ips" not in lab.call("cnv-bridge", "ADD", bridge_conf(ipam=ipam), where)
    assert "inet " not in where.run("ip addr show eth0")
    lab.call("cnv-bridge", "DEL", bridge_conf(ipam=ipam), where)


def test_dhcp_is_delegated_and_error_is_returned(lab: Lab) -> None:
    # The daemon of the dhcp plugin does not run.
    where = lab.container()
    ipam = {"type": "dhcp", "daemonSocketPath": str(lab.folder / "nobody.sock")}
    error = lab.refusal("cnv-bridge", "ADD", bridge_conf(ipam=ipam), where)
    assert "dhcp" in error["msg"] and "nobody.sock" in error["msg"]
    assert set(where.links()) == {"lo"}
    lab.clean()


def test_previous_result_is_passed_on(lab: Lab) -> None:
    where = lab.container()
    earlier = {
        "interfaces": [{"name": "net1", "sandbox": where.path, "socketPath": "/kept"}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
        "dns": {"domain": "x.test"},
    }
    conf = bridge_conf(prevResult=earlier, ipam=host_local(lab, "10.9.0.0/24"))
    result = lab.call("cnv-bridge", "ADD", conf, where)
    assert [each["name"] for each in result["interfaces"]] == ["net1", "br1", OUTSIDE, "eth0"]
    assert result["interfaces"][0]["socketPath"] == "/kept"
    assert [(ip["address"], ip["interface"]) for ip in result["ips"]] == [("192.0.2.9/24", 0), ("10.9.0.2/24", 3)]
    assert result["dns"] == {"domain": "x.test"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("node ip link set {0} nomaster", "not a port of br1"),
        ("node ip link set {0} down", "is down"),
        ("node ip link set {0} type bridge_slave hairpin off", "hairpinMode"),
        ("node nft flush ruleset", "macspoofchk"),
        ("pod ip link set eth0 down", "eth0 is down"),
        ("pod ip link set eth0 address 02:00:00:00:00:66", "instead of"),
        ("pod ip addr flush dev eth0", "lost its address"),
        ("pod ip route del default", "lost its route"),
        ("pod ip link set eth0 down; ip link set eth0 name eth9", "eth0 is not in the container"),
        ("node ip link del {0}", "does not exist"),
    ],
)
def test_check_reports_differences(lab: Lab, damage: str, words: str) -> None:
    where = lab.container()
    conf = bridge_conf(macspoofchk=True, hairpinMode=True, isDefaultGateway=True, ipam=host_local(lab, "10.9.0.0/24"))
    result = lab.call("cnv-bridge", "ADD", conf, where)
    lab.call("cnv-bridge", "CHECK", conf | {"prevResult": result}, where)
    place, command = damage.split(" ", 1)
    (lab.node if place == "node" else where).run(command.format(OUTSIDE))
    error = lab.refusal("cnv-bridge", "CHECK", conf | {"prevResult": result}, where)
    assert error["code"] == 101 and words in error["msg"]


def test_gc_removes_attachments_missing_in_list(lab: Lab) -> None:
    conf = bridge_conf(cniVersion="1.1.0", macspoofchk=True)
    for number in range(3):
        lab.call("cnv-bridge", "ADD", conf, lab.container(), CNI_CONTAINERID=f"c{number}")
    lab.call("cnv-bridge", "ADD", conf | {"name": "other"}, lab.container(), CNI_CONTAINERID="c0")
    keep = [{"containerID": "c1", "ifname": "eth0"}]
    lab.call("cnv-bridge", "GC", conf | {"cni.dev/valid-attachments": keep}, None)
    left = {name for name in lab.node.links() if name.startswith("cnv")}
    assert left == {host_name("net", "c1", "eth0"), host_name("other", "c0", "eth0")}
    rules = lab.ruleset()
    assert all(name in rules for name in left) and host_name("net", "c0", "eth0") not in rules


def test_status_and_version_succeed(lab: Lab) -> None:
    conf = bridge_conf(cniVersion="1.1.0", macspoofchk=True)
    for plugin in ("cnv-bridge", "cnv-tuning"):
        assert lab.call(plugin, "STATUS", conf | {"dataDir": str(lab.data)}, None) is None
        answer = lab.call(plugin, "VERSION", {"cniVersion": "0.4.0"}, None)
        assert answer == {"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


def test_plugin_without_command_prints_description(lab: Lab) -> None:
    done = lab.raw("cnv-bridge", "", b"", None, CNI_COMMAND=None)
    assert done.returncode == 0 and not done.stdout and b"CNI protocol versions supported: 0.3.1" in done.stderr


def test_seed_manifest_config_works(lab: Lab) -> None:
    chain = json.loads(
        '{"cniVersion": "0.3.1", "name": "br1-public", '
        '"plugins": [{"type": "cnv-bridge", "bridge": "br1"},{"type": "cnv-tuning"}]}'
    )
    common = {"cniVersion": chain["cniVersion"], "name": chain["name"]}
    where = lab.container()
    first = lab.call("cnv-bridge", "ADD", common | chain["plugins"][0], where, CNI_IFNAME="net1")
    second = lab.call(
        "cnv-tuning", "ADD", common | chain["plugins"][1] | {"prevResult": first}, where, CNI_IFNAME="net1"
    )
    assert second == first
    for plugin in reversed(chain["plugins"]):
        lab.call(plugin["type"], "DEL", common | plugin, where, CNI_IFNAME="net1")
    lab.clean(but={"br1"})
