"""The network-status annotation in Multus' format, from untrusted results."""

import json
from typing import Any

from api.k8s.meta import ObjectMeta
from api.k8s.objects import Pod, PodIP, PodStatus
from api.network_attachments import ANNOTATION_STATUS, Selection
from handler.secondary_networks import network_status
from handler.secondary_networks.attachment_records import Attachment


def joined(result: dict[str, Any] | None, interface: str = "net1") -> Attachment:
    wanted = Selection(namespace="web", name="dmz", interface=interface)
    return Attachment(selection=wanted, name="lan", version="1.0.0", plugins=[], result=result)


RESULT = {
    "interfaces": [
        {"name": "br1", "mac": "02:00:00:00:00:0a"},
        {"name": "veth0", "mac": "02:00:00:00:00:0b"},
        {"name": "net1", "mac": "02:AA:00:00:00:01", "sandbox": "/proc/1/fd/3"},
    ],
    "ips": [
        {"address": "192.0.2.7/24", "interface": 2},
        {"address": "2001:db8::7/64"},
        {"address": "192.0.2.1/24", "interface": 0},
    ],
    "dns": {"nameservers": ["192.0.2.53"]},
}


def test_an_entry_has_the_interfaces_own_addresses() -> None:
    assert network_status.entry(joined(RESULT)) == {
        "name": "web/dmz",
        "interface": "net1",
        "ips": ["192.0.2.7", "2001:db8::7"],
        "mac": "02:aa:00:00:00:01",
        "dns": {"nameservers": ["192.0.2.53"]},
    }


def test_a_network_without_addresses() -> None:
    assert network_status.entry(joined({"interfaces": []})) == {"name": "web/dmz", "interface": "net1", "dns": {}}


def test_malformed_result_values_are_dropped() -> None:
    odd = {"interfaces": [3, {"name": "net1", "sandbox": "x", "mac": 4}], "ips": [7, {"address": "no"}], "dns": [1]}
    assert network_status.entry(joined(odd)) == {"name": "web/dmz", "interface": "net1", "dns": {}}
    many = {"ips": [{"address": f"10.0.{number >> 8}.{number & 255}/8"} for number in range(5000)]}
    assert len(network_status.entry(joined(many))["ips"]) == 32


def test_pod_network_entry_comes_first() -> None:
    pod = Pod(status=PodStatus(podIP="10.1.0.5", podIPs=[PodIP(ip="10.1.0.5"), PodIP(ip="fd00::5")]))
    first, second = json.loads(
        network_status.text(pod, "pods", "02:00:00:00:00:09", [joined(RESULT), joined(None, "x")])
    )
    assert first == {
        "name": "pods",
        "interface": "eth0",
        "ips": ["10.1.0.5", "fd00::5"],
        "mac": "02:00:00:00:00:09",
        "default": True,
        "dns": {},
    }
    assert second["interface"] == "net1"


def test_existing_pod_network_entry_is_kept() -> None:
    before = [{"name": "pods", "interface": "eth0", "ips": ["10.1.0.5"], "mac": "02:09", "default": True}]
    pod = Pod(metadata=ObjectMeta(annotations={ANNOTATION_STATUS: json.dumps(before)}))
    assert json.loads(network_status.text(pod, "pods", "00:00:00:00:00:00", []))[0]["mac"] == "02:09"


def test_malformed_annotation_has_no_entries() -> None:
    for text in ("", "{", "{}", "[3]", '[{"interface": 3}]', "[" * 5000):
        assert network_status.entries(Pod(metadata=ObjectMeta(annotations={ANNOTATION_STATUS: text}))) == []
