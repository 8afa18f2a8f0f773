"""Users' CNI configurations: validation, and the input of each plugin."""

import json
from typing import Any

import pytest

from api.errors import NetworkError
from api.k8s.meta import ObjectMeta
from api.network_attachments import NetworkAttachmentDefinition, NetworkAttachmentDefinitionSpec, Selection
from handler.secondary_networks import cni_config
from handler.secondary_networks.cni_config import CniNetwork


def nad(config: Any, name: str = "dmz") -> NetworkAttachmentDefinition:
    text = config if isinstance(config, str) or config is None else json.dumps(config)
    return NetworkAttachmentDefinition(
        metadata=ObjectMeta(name=name, namespace="web"), spec=NetworkAttachmentDefinitionSpec(config=text)
    )


def selection(**fields: Any) -> Selection:
    return Selection(namespace="web", name="dmz", interface="net1", **fields)


def given(network: CniNetwork, place: int = 0, previous: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cni_config.for_add(network, place, selection(**fields), previous))
    return found


def test_single_plugin_configuration() -> None:
    network = cni_config.parse(nad({"cniVersion": "1.0.0", "name": "lan", "type": "cnv-bridge", "bridge": "br1"}))
    assert (network.name, network.version, network.kind(0)) == ("lan", "1.0.0", "cnv-bridge")
    assert given(network) == {"cniVersion": "1.0.0", "name": "lan", "type": "cnv-bridge", "bridge": "br1"}


def test_list_plugins_get_name_version_and_previous_result() -> None:
    network = cni_config.parse(
        nad(
            {
                "cniVersion": "0.4.0",
                "name": "lan",
                "plugins": [{"type": "cnv-bridge"}, {"type": "cnv-tuning", "mtu": 9}],
            }
        )
    )
    assert "prevResult" not in given(network, 0)
    assert given(network, 1, {"ips": []}) == {
        "cniVersion": "0.4.0",
        "name": "lan",
        "type": "cnv-tuning",
        "mtu": 9,
        "prevResult": {"ips": []},
    }


def test_name_and_version_have_defaults() -> None:
    network = cni_config.parse(nad({"type": "cnv-bridge"}))
    assert (network.name, network.version) == ("dmz", "0.3.1")


def test_runtime_only_keys_are_dropped() -> None:
    network = cni_config.parse(
        nad({"type": "x", "prevResult": {"a": 1}, "runtimeConfig": {"mac": "m"}, "capabilities": {"mac": True}})
    )
    assert given(network) == {"type": "x", "name": "dmz", "cniVersion": "0.3.1"}


def test_runtime_config_requires_declared_capability() -> None:
    plugins = [
        {"type": "a", "capabilities": {"ips": True, "mac": False}},
        {"type": "b", "capabilities": {"mac": True}},
        {"type": "c"},
    ]
    network = cni_config.parse(nad({"plugins": plugins}))
    asked: dict[str, Any] = {"mac": "02:00:00:00:00:01", "ips": ("192.0.2.7/24",)}
    assert given(network, 0, **asked)["runtimeConfig"] == {"ips": ["192.0.2.7/24"]}
    assert given(network, 1, **asked)["runtimeConfig"] == {"mac": "02:00:00:00:00:01"}
    assert "runtimeConfig" not in given(network, 2, **asked)
    assert cni_config.faults(network, selection(**asked), for_guest=True) == ""
    assert 'declares the capability "ips"' in cni_config.faults(
        cni_config.parse(nad({"type": "a"})), selection(ips=("192.0.2.7/24",)), for_guest=False
    )


def test_dhcp_ipam_is_rejected_for_guests() -> None:
    network = cni_config.parse(nad({"plugins": [{"type": "cnv-bridge", "ipam": {"type": "dhcp"}}, {"type": "x"}]}))
    assert "ipam type dhcp in spec.config" in cni_config.faults(network, selection(), for_guest=True)
    assert cni_config.faults(network, selection(), for_guest=False) == ""
    for ipam in ({}, "dhcp", None, {"type": "host-local"}):
        other = cni_config.parse(nad({"type": "cnv-bridge", "ipam": ipam}))
        assert cni_config.faults(other, selection(), for_guest=True) == ""


def test_pod_args_override_definition_args() -> None:
    definition = {"type": "a", "args": {"cni": {"vlan": 1, "x": 2}, "other": 3}, "allowedArgs": ["vlan"]}
    network = cni_config.parse(nad(definition))
    assert given(network, cniArgs={"vlan": 7})["args"] == {"cni": {"vlan": 7, "x": 2}, "other": 3}


def test_cni_args_outside_allowed_args_are_rejected() -> None:
    plugins = [{"type": "cnv-bridge"}, {"type": "cnv-tuning", "mtu": 1400, "allowedArgs": ["mtu"]}]
    network = cni_config.parse(nad({"plugins": plugins}))
    free = {"mac": "02:00:00:00:00:07", "ips": ["10.0.0.7/24"], "interface": "net1"}
    assert cni_config.faults(network, selection(cniArgs={**free, "mtu": 1300}), for_guest=False) == ""
    for key in ("sysctl", "promisc", "allmulti", "txQLen", "vlan", "bridge", "ipam"):
        said = cni_config.faults(network, selection(cniArgs={key: "x"}), for_guest=False)
        assert "network web/dmz" in said and f"'{key}'" in said and "allowedArgs" in said
    # An earlier version's record may still have them: they reach no plugin. What is allowed reaches that plugin alone.
    asked = {**free, "mtu": 1300, "sysctl": {"net.ipv4.ip_forward": "1"}, "promisc": True}
    assert given(network, 0, cniArgs=asked)["args"] == {"cni": free}
    assert given(network, 1, cniArgs=asked)["args"] == {"cni": {**free, "mtu": 1300}}
    assert "args" not in given(network, 0, cniArgs={"promisc": True})


@pytest.mark.parametrize(("version", "with_result"), [("0.3.1", False), ("0.4.0", True), ("1.1.0", True)])
def test_del_gets_prev_result_since_cni_0_4_0(version: str, with_result: bool) -> None:
    network = cni_config.parse(nad({"type": "a", "cniVersion": version}))
    found = json.loads(cni_config.for_del(network, 0, selection(), {"ips": []}))
    assert ("prevResult" in found) is with_result


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "spec.config is empty"),
        ("", "spec.config is empty"),
        ("{", "spec.config is not JSON"),
        ("[" * 5000, "spec.config is not JSON"),
        ("3", "must be a JSON object"),
        ({}, "type of plugin 0 in spec.config must be the file name of a CNI plugin, without a path"),
        ({"type": "../../bin/sh"}, "without a path"),
        ({"type": "/bin/sh"}, "without a path"),
        ({"type": "a..b"}, "without a path"),
        ({"type": ".hidden"}, "without a path"),
        ({"type": "a\nb"}, "without a path"),
        ({"type": "a" * 200}, "without a path"),
        ({"plugins": [{"type": "ok"}, {"type": ""}]}, "type of plugin 1"),
        ({"plugins": []}, "must be a list of 1 to 16 plugins"),
        ({"plugins": {"type": "ok"}}, "must be a list of 1 to 16 plugins"),
        ({"plugins": [{"type": "ok"}] * 17}, "must be a list of 1 to 16 plugins"),
        ({"plugins": ["ok"]}, "type of plugin 0"),
        ({"type": "ok", "name": "../../etc"}, "name in spec.config must be"),
        ({"type": "ok", "name": 3}, "name in spec.config must be"),
        ({"type": "ok", "cniVersion": "0.2.0"}, "cniVersion in spec.config is '0.2.0'; supported: 0.3.0"),
        ({"type": "ok", "cniVersion": ["1.0.0"]}, "cniVersion in spec.config"),
        ({"type": "ok", "capabilities": ["mac"]}, "capabilities of plugin 0 (ok) must be an object"),
        ({"type": "ok", "args": 3}, "args of plugin 0 (ok) must be an object"),
        ({"type": "ok", "allowedArgs": "mtu"}, "allowedArgs of plugin 0 (ok) must be a list of names"),
        ({"type": "ok", "allowedArgs": [3]}, "allowedArgs of plugin 0 (ok) must be a list of names"),
        ({"type": "ok", "x": "y" * 70000}, "larger than 64 KiB"),
    ],
)
def test_invalid_config_names_network_and_field(config: Any, words: str) -> None:
    with pytest.raises(NetworkError, match=r"^network web/dmz: ") as caught:
        cni_config.parse(nad(config))
    assert words in caught.value.message and len(caught.value.message) < 300
