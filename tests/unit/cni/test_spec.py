"""Configurations and results: types, versions, field paths of errors, precedence."""

import json
from typing import Any

import pytest

from cni import desired_attachment, errors, spec, tuning, version
from cni.errors import CniError
from cni.invocation import Invocation
from cni.spec import BridgeConf, TuningConf


def call(**changes: Any) -> Invocation:
    given: dict[str, Any] = {
        "plugin": "cnv-bridge", "command": "ADD", "container": "c1", "interface": "eth0", "netns": -1,
        "netns_path": "/run/netns/x", "path": (), "arguments": {}, "environment": {}, "stdin": b"", "peer": 1,
    }  # fmt: skip
    return Invocation(**given | changes)


def bridge(**fields: Any) -> desired_attachment.DesiredAttachment:
    conf = {"cniVersion": "1.0.0", "name": "net", **fields}
    return desired_attachment.desired_attachment(spec.decode(json.dumps(conf).encode(), BridgeConf), call())


def test_absent_fields_have_the_defaults_of_the_table() -> None:
    found = bridge()
    assert (found.bridge, found.mtu, found.mac, found.native, found.tagged, found.ipam) == (
        "cni0",
        0,
        "",
        0,
        frozenset(),
        "",
    )
    assert found.keep_default_vlan and found.up
    assert not any(
        [found.guard, found.hairpin, found.isolated, found.promiscuous, found.gateway, found.masquerade, found.dad]
    )
    assert len(found.outside) == 15


def test_null_is_the_same_as_absent() -> None:
    names = [each for each in BridgeConf.__struct_fields__ if each not in ("cniVersion", "name", "valid")]
    assert bridge(**dict.fromkeys(names)) == bridge()


def test_vlan_trunk_is_the_union_of_ranges_and_ids_without_the_native_one() -> None:
    trunk = [{"minID": 3, "maxID": 6}, {"id": 9}, {"id": 10, "minID": 5, "maxID": 7}]
    assert bridge(vlan=6, vlanTrunk=trunk).tagged == {3, 4, 5, 7, 9, 10}


def test_a_default_gateway_is_a_gateway() -> None:
    assert bridge(isDefaultGateway=True).gateway and not bridge(isGateway=True).default_gateway


@pytest.mark.parametrize(
    "value", ["02:00:00:00:00", "02:00:00:00:00:0g", "01:00:00:00:00:00", "00:00:00:00:00:00", "x" * 500]
)
def test_multicast_zero_and_malformed_macs_are_rejected(value: str) -> None:
    with pytest.raises(CniError) as caught:
        bridge(runtimeConfig={"mac": value})
    assert caught.value.code == errors.CONFIG and "$.runtimeConfig.mac" in caught.value.message
    assert len(caught.value.message) < 250


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", 6),
        (b'"x"', 7),
        (b'{"cniVersion":"0.2.0","name":"n"}', 1),
        (b'{"cniVersion":"1.0.0"}', 7),
        (b'{"name":7}', 7),
    ],
)
def test_invalid_configuration_raises_its_cni_code(raw: bytes, code: int) -> None:
    with pytest.raises(CniError) as caught:
        spec.decode(raw, TuningConf)
    assert caught.value.code == code


def test_the_error_object_has_the_fields_of_the_specification() -> None:
    assert CniError(7, "words", "more").fields("1.0.0") == {
        "cniVersion": "1.0.0",
        "code": 7,
        "msg": "words",
        "details": "more",
    }
    assert "details" not in CniError(7, "words").fields("1.0.0")


def test_result_keeps_unknown_interface_fields() -> None:
    given = {"interfaces": [{"name": "x", "pciID": "0000:00:01.0"}], "ips": [{"address": "10.0.0.2/24"}]}
    found = json.loads(spec.result(given, "0.4.0", 7, "it").encode())
    assert found["interfaces"] == given["interfaces"] and found["ips"][0]["version"] == "4"
    assert "version" not in json.loads(spec.result(given, "1.0.0", 7, "it").encode())["ips"][0]


def tune(arguments: dict[str, str] | None = None, **fields: Any) -> tuning.DesiredTuning:
    conf = {"cniVersion": "1.0.0", "name": "net", **fields}
    return tuning.desired_tuning(spec.decode(json.dumps(conf).encode(), TuningConf), call(arguments=arguments or {}))


def test_tuning_mac_precedence() -> None:
    one, two, three, four = (f"02:00:00:00:00:0{n}" for n in range(1, 5))
    assert tune(mac=one).mac == one
    assert tune({"MAC": two}, mac=one).mac == two
    assert tune({"MAC": two}, mac=one, runtimeConfig={"mac": three}).mac == three
    assert tune({"MAC": two}, mac=one, runtimeConfig={"mac": three}, args={"cni": {"mac": four}}).mac == four


def test_args_replace_sysctls_as_a_whole() -> None:
    over = {"cni": {"sysctl": {"net.ipv4.ip_forward": "1"}}}
    found = tune(sysctl={"net.core.somaxconn": "1"}, args=over, allowedArgs=["sysctl"])
    assert [each.path for each in found.sysctls] == ["ipv4/ip_forward"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sysctl", {"net.ipv4.ip_forward": "1"}),
        ("promisc", True),
        ("promisc", False),
        ("allmulti", True),
        ("mtu", 9000),
        ("txQLen", 0),
    ],
)
def test_pod_args_are_rejected_unless_network_allows_them(name: str, value: object) -> None:
    others = [each for each in ("sysctl", "promisc", "allmulti", "mtu", "txQLen") if each != name]
    for allowed in (None, [], others):
        with pytest.raises(CniError, match=rf"\$\.args\.cni\.{name}: .* network net.*allowedArgs") as caught:
            tune(args={"cni": {name: value, "mac": "02:00:00:00:00:04"}}, allowedArgs=allowed)
        assert caught.value.code == 7
    tune(args={"cni": {name: value}}, allowedArgs=[name])


def test_version_echoes_supported_version() -> None:
    for given, expected in ((b'{"cniVersion":"0.4.0"}', "0.4.0"), (b'{"cniVersion":"7"}', "1.1.0"), (b"junk", "1.1.0")):
        assert json.loads(version.answer(given))["cniVersion"] == expected
    assert version.at_least("1.1.0", "0.4.0") and not version.at_least("0.3.1", "0.4.0")
