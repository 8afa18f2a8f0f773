"""The network selection annotation of a pod: both forms, and errors."""

import json

import pytest

from api import network_attachments
from api.network_attachments import Selection


def test_no_annotation_is_no_network() -> None:
    assert (
        network_attachments.selections("web", None)
        == network_attachments.selections("web", "  ")
        == network_attachments.selections("web", "[]")
        == []
    )


def test_comma_separated_selections() -> None:
    assert network_attachments.selections("web", "one, default/two@dmz ,web/three") == [
        Selection(namespace="web", name="one", interface="net1"),
        Selection(namespace="default", name="two", interface="dmz"),
        Selection(namespace="web", name="three", interface="net3"),
    ]


def test_a_json_list() -> None:
    text = json.dumps(
        [
            {"name": "one", "namespace": "web", "interface": "pod0123456789a", "mac": "02-AA-00-00-00-01"},
            {"name": "two", "ips": ["192.0.2.7/24", "2001:db8::7"], "cni-args": {"vlan": 3}, "unknown": 1},
        ]
    )
    first, second = network_attachments.selections("web", text)
    assert first == Selection(namespace="web", name="one", interface="pod0123456789a", mac="02:aa:00:00:00:01")
    assert second == Selection(
        namespace="web", name="two", interface="net2", ips=("192.0.2.7/24", "2001:db8::7"), cniArgs={"vlan": 3}
    )
    assert first.network == "web/one"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("other/one", "is in namespace other; only networks of the pod's own namespace"),
        ("kube-system/one", "is in namespace kube-system"),
        ("../one", "'..' is not a valid namespace"),
        ("web/../../etc", "not a valid NetworkAttachmentDefinition name"),
        ("one@", "has no interface name after '@'"),
        ("one,", "not a valid NetworkAttachmentDefinition name"),
        ("one@eth0", "'eth0' is not a valid interface name"),
        ("one@lo", "'lo' is not a valid interface name"),
        ("one@a/b", "'a/b' is not a valid interface name"),
        ("one@sixteencharacter", "is not a valid interface name"),
        ("one@net1,two@net1", "lists the interface net1 more than once"),
        ("one@net2,two", "lists the interface net2 more than once"),
        ("[", "is not a JSON list of networks"),
        ('[{"name": 3}]', "is not a JSON list of networks: Expected `str`"),
        ("[" * 10000, "is not a JSON list"),
        ('[{"name": "one", "mac": "01:00:5e:00:00:01"}]', "is not a unicast MAC address"),
        ('[{"name": "one", "mac": "02:00:00:00:00:01;X=y"}]', "is not a unicast MAC address"),
        ('[{"name": "one", "ips": ["10.0.0.1/64"]}]', "in ips is not an IP address"),
        ('[{"name": "one", "default-route": ["10.0.0.1"]}]', "default-route is not supported"),
        (",".join(["one"] * 33), "lists 33 networks, exceeding the maximum of 32"),
        ("a" * 70000, "exceeds 64 KiB"),
    ],
)
def test_invalid_selection_raises_value_error(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"k8s\.v1\.cni\.cncf\.io/networks") as caught:
        network_attachments.selections("web", text)
    assert words in str(caught.value) and len(str(caught.value)) < 400
