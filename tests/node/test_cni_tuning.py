"""cnv-tuning on real namespaces: every field, precedence, what it saves and gives back, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.node.cnilab import Lab, Space, bridge_conf, client, lab, tuning_conf

pytestmark = pytest.mark.node
__all__ = ["client", "lab"]  # fixtures
ARP = "/proc/sys/net/ipv4/conf/eth0/arp_filter"


@pytest.fixture
def where(lab: Lab) -> Space:
    """A container with an eth0."""
    space = lab.container()
    lab.call("cnv-bridge", "ADD", bridge_conf(), space)
    return space


def state(space: Space) -> dict[str, Any]:
    link = space.links()["eth0"]
    sysctls = space.run(f"cat {ARP} /proc/sys/net/core/somaxconn").split()
    return {
        "mac": link.mac,
        "mtu": link.mtu,
        "promisc": bool(link.flags & 0x100),
        "allmulti": bool(link.flags & 0x200),
        "txQLen": link.txqlen,
        "sysctl": sysctls,
    }


def test_every_field_is_applied_and_restored_by_del(lab: Lab, where: Space) -> None:
    before = state(where)
    sysctls = {"net.ipv4.conf.IFNAME.arp_filter": "1", "net/core/somaxconn": "77"}
    fields = {"mac": "02:00:00:00:00:99", "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 55}
    conf = tuning_conf(lab, where, sysctl=sysctls, **fields)
    result = lab.call("cnv-tuning", "ADD", conf, where)
    assert state(where) == {**fields, "sysctl": ["1", "77"]}
    assert result["interfaces"][1]["mac"] == "02:00:00:00:00:99"
    saved = lab.data / "tuning" / "c1_eth0.json"
    assert saved.stat().st_mode & 0o777 == 0o600 and json.loads(saved.read_text())["mtu"] == 1500
    lab.call("cnv-tuning", "CHECK", conf, where)
    lab.call("cnv-tuning", "DEL", conf, where)
    assert state(where) == before and not saved.exists()
    lab.call("cnv-tuning", "DEL", conf, where)


@pytest.mark.parametrize("field", ["mac", "mtu", "promisc", "allmulti", "txQLen", "sysctl"])
def test_single_field_leaves_others_unchanged(lab: Lab, where: Space, field: str) -> None:
    before = state(where)
    values = {"mac": "02:00:00:00:00:99", "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 55}
    value: Any = values.get(field, {"net.ipv4.conf.IFNAME.arp_filter": "1"})
    lab.call("cnv-tuning", "ADD", tuning_conf(lab, where, **{field: value}), where)
    after = state(where)
    assert after == before | {field: ["1", before["sysctl"][1]] if field == "sysctl" else value}


def test_last_mac_source_takes_precedence(lab: Lab, where: Space) -> None:
    conf: dict[str, Any] = {"mac": "02:00:00:00:00:01"}
    steps: list[tuple[dict[str, Any], str | None]] = [
        ({}, None),
        ({}, "MAC=02:00:00:00:00:02"),
        ({"runtimeConfig": {"mac": "02:00:00:00:00:03"}}, "MAC=02:00:00:00:00:02"),
        ({"args": {"cni": {"mac": "02:00:00:00:00:04"}}}, "MAC=02:00:00:00:00:02"),
    ]
    for number, (fields, arguments) in enumerate(steps, 1):
        conf |= fields
        result = lab.call("cnv-tuning", "ADD", tuning_conf(lab, where, **conf), where, CNI_ARGS=arguments)
        assert result["interfaces"][1]["mac"] == where.links()["eth0"].mac == f"02:00:00:00:00:0{number}"


def test_args_override_all_fields(lab: Lab, where: Space) -> None:
    over = {
        "mtu": 1300,
        "promisc": True,
        "allmulti": True,
        "txQLen": 9,
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
    }
    sysctl = {"net.core.somaxconn": "99"}
    conf = tuning_conf(lab, where, mtu=1400, txQLen=5, sysctl=sysctl, args={"cni": over}, allowedArgs=[*over])
    untouched = state(where)["sysctl"][1]
    lab.call("cnv-tuning", "ADD", conf, where)
    after = state(where)
    assert {**after, "sysctl": after["sysctl"]} == {
        "mac": after["mac"], "mtu": 1300, "promisc": True, "allmulti": True, "txQLen": 9, "sysctl": ["1", untouched],
    }  # fmt: skip


def test_pod_args_are_limited_to_those_allowed_by_network(lab: Lab, where: Space) -> None:
    """What a pod's `cni-args` say comes in `args.cni`, from Multus unread."""
    before = state(where)
    for over in ({"sysctl": {"net.ipv4.ip_forward": "1"}}, {"promisc": True}, {"allmulti": True}, {"mtu": 1300}):
        conf = tuning_conf(lab, where, txQLen=5, args={"cni": over}, allowedArgs=["txQLen"])
        refused = lab.refusal("cnv-tuning", "ADD", conf, where)
        assert refused["code"] == 7 and f"$.args.cni.{next(iter(over))}" in refused["msg"]
        # The runtime's DEL after it goes through.
        lab.call("cnv-tuning", "DEL", conf, where)
    assert state(where) == before
    allowed = tuning_conf(lab, where, args={"cni": {"txQLen": 9}}, allowedArgs=["txQLen"])
    lab.call("cnv-tuning", "ADD", allowed, where)
    assert state(where) == before | {"txQLen": 9}


def test_add_after_interrupted_add_keeps_original_state(lab: Lab, where: Space) -> None:
    first = state(where)
    lab.call("cnv-tuning", "ADD", tuning_conf(lab, where, mtu=1400, mac="02:00:00:00:00:99"), where)
    lab.call("cnv-tuning", "ADD", tuning_conf(lab, where, mtu=1300, mac="02:00:00:00:00:98"), where)
    lab.call("cnv-tuning", "DEL", tuning_conf(lab, where, mtu=1300), where)
    assert state(where) == first


@pytest.mark.parametrize(
    ("sysctl", "words"),
    [
        ("kernel.hostname", "not below net"),
        ("net", "not below net"),
        ("net/../kernel/hostname", "not the name"),
        ("net.ipv4..ip_forward", "not the name"),
        ("net/./core/somaxconn", "not the name"),
        ("/net/core/somaxconn", "not below net"),
        ("net.ipv4.no_such_thing", "cannot be read"),
        ("net.ipv4.conf", "cannot be read"),
    ],
)
def test_sysctls_outside_container_network_are_refused(lab: Lab, where: Space, sysctl: str, words: str) -> None:
    error = lab.refusal("cnv-tuning", "ADD", tuning_conf(lab, where, mtu=1400, sysctl={sysctl: "1"}), where)
    assert error["code"] == 7 and words in error["msg"]
    assert where.links()["eth0"].mtu == 1500 and not list(lab.data.glob("tuning/*"))


def test_value_refused_by_kernel_rolls_back_add(lab: Lab, where: Space) -> None:
    before = state(where)
    sysctls = {"net.core.somaxconn": "99", "net.ipv4.conf.IFNAME.arp_filter": "nonsense"}
    error = lab.refusal("cnv-tuning", "ADD", tuning_conf(lab, where, mtu=1400, sysctl=sysctls), where)
    assert error["code"] == 100 and state(where) == before and not list(lab.data.glob("tuning/*"))


@pytest.mark.parametrize("place", ["/etc", "relative", "{}/../..", "{}x", "/"])
def test_data_dir_outside_allowed_paths_is_refused(lab: Lab, where: Space, place: str) -> None:
    conf = tuning_conf(lab, where, mtu=1400, dataDir=place.format(lab.data))
    error = lab.refusal("cnv-tuning", "ADD", conf, where)
    assert error["code"] == 7 and "dataDir" in error["msg"] and where.links()["eth0"].mtu == 1500
    lab.call("cnv-tuning", "DEL", conf, where)


def test_symlink_to_data_dir_is_not_followed(lab: Lab, where: Space, tmp_path: Path) -> None:
    (lab.data / "link").symlink_to(tmp_path)
    error = lab.refusal("cnv-tuning", "ADD", tuning_conf(lab, where, mtu=1400, dataDir=str(lab.data / "link")), where)
    assert error["code"] == 5 and not list(tmp_path.iterdir())
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (lab.data / "tuning").mkdir()
    (lab.data / "tuning" / "c1_eth0.json").symlink_to(victim)
    lab.refusal("cnv-tuning", "ADD", tuning_conf(lab, where, mtu=1400), where)
    assert victim.read_text() == "mine" and where.links()["eth0"].mtu == 1500
    lab.call("cnv-tuning", "DEL", tuning_conf(lab, where, mtu=1400), where)
    assert victim.read_text() == "mine" and not (lab.data / "tuning" / "c1_eth0.json").is_symlink()


def test_tuning_without_previous_plugin_is_refused(lab: Lab, where: Space) -> None:
    conf = tuning_conf(lab, where, mtu=1400)
    del conf["prevResult"]
    assert lab.refusal("cnv-tuning", "ADD", conf, where)["code"] == 7
    error = lab.refusal("cnv-tuning", "ADD", tuning_conf(lab, where, mtu=1400), where, CNI_IFNAME="eth7")
    assert error["code"] == 3 and "eth7" in error["msg"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("ip link set eth0 address 02:00:00:00:00:66", "MAC"),
        ("ip link set eth0 mtu 1200", "MTU"),
        ("ip link set eth0 promisc off", "promisc"),
        ("ip link set eth0 allmulticast off", "allmulti"),
        ("ip link set eth0 txqueuelen 3", "txQLen"),
        (f"echo 0 > {ARP}", "arp_filter"),
    ],
)
def test_check_reports_differences(lab: Lab, where: Space, damage: str, words: str) -> None:
    fields = {"mac": "02:00:00:00:00:99", "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 55}
    conf = tuning_conf(lab, where, sysctl={"net.ipv4.conf.IFNAME.arp_filter": "1"}, **fields)
    lab.call("cnv-tuning", "ADD", conf, where)
    where.run(damage)
    error = lab.refusal("cnv-tuning", "CHECK", conf, where)
    assert error["code"] == 101 and words in error["msg"]


def test_gc_removes_saved_state_of_own_network_only(lab: Lab) -> None:
    for network, container in (("net", "c1"), ("net", "c2"), ("other", "c3")):
        space = lab.container()
        lab.call("cnv-bridge", "ADD", bridge_conf(name=network), space, CNI_CONTAINERID=container)
        conf = tuning_conf(lab, space, name=network, mtu=1400)
        lab.call("cnv-tuning", "ADD", conf, space, CNI_CONTAINERID=container)
    keep = [{"containerID": "c1", "ifname": "eth0"}]
    conf = {
        "cniVersion": "1.1.0",
        "name": "net",
        "dataDir": str(lab.data / "tuning"),
        "cni.dev/valid-attachments": keep,
    }
    lab.call("cnv-tuning", "GC", conf, None)
    assert {each.name for each in lab.data.glob("tuning/*")} == {"c1_eth0.json", "c3_eth0.json"}
