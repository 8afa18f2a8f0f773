"""NICs beyond the golden files: hot-plug, and invalid ones."""

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from launcher.domain.facts import InvalidVmi, NicFacts, PodFacts
from launcher.domain.nics import interfaces, pluggable
from launcher.domain_builder import child
from launcher.paths import Paths

MAC = "02:00:00:00:00:01"


def text_of(*cards: dict[str, Any]) -> str:
    document = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "namespace": "test"},
        "spec": {"domain": {"devices": {"interfaces": [{"model": "virtio", **card} for card in cards]}}},
    }
    return json.dumps(document)


def vmi(*cards: dict[str, Any]) -> VirtualMachineInstance:
    return codec.decode(VirtualMachineInstance, text_of(*cards))


def facts(*names: str, kvm: bool = False, vhost: bool = False) -> PodFacts:
    return PodFacts(paths=Paths(), kvm=kvm, vhost=vhost, nics=[NicFacts(name, f"tap-{name}", MAC) for name in names])


@pytest.mark.parametrize("model", ["virtio", "e1000e"])
def test_pci_express_nics_are_hot_pluggable(model: str) -> None:
    element = pluggable(vmi({"name": "a", "bridge": {}, "model": model}), "a", facts("a")).element()
    assert element.find(f"model[@type='{model}']") is not None
    assert element.find("alias[@name='ua-nic_a']") is not None and element.find("target[@dev='tap-a']") is not None


def test_defaults_must_have_been_applied() -> None:
    with pytest.raises(InvalidVmi, match=r"spec\.domain\.devices\.interfaces\[0\]\.model: required"):
        pluggable(vmi({"name": "a", "bridge": {}, "model": None}), "a", facts("a"))


@pytest.mark.parametrize("model", ["e1000", "rtl8139", "pcnet", "ne2k_pci"])
def test_conventional_nics_are_not_hot_pluggable(model: str) -> None:
    with pytest.raises(
        InvalidVmi, match=rf"interfaces\[0\].model: 'a' cannot .*, since {model} is not a PCI Express card"
    ):
        pluggable(vmi({"name": "a", "bridge": {}, "model": model}), "a", facts("a"))


def test_virtual_functions_are_not_hot_pluggable() -> None:
    with pytest.raises(InvalidVmi, match=r"interfaces\[0\].sriov: 'a' cannot be plugged in while the VM runs"):
        pluggable(vmi({"name": "a", "sriov": {}}), "a", facts("a"))


def test_nic_requires_a_tap_and_a_vmi_interface() -> None:
    with pytest.raises(InvalidVmi, match=r"interfaces\[0\].name: the handler has created no tap device for 'a'"):
        pluggable(vmi({"name": "a", "bridge": {}}), "a", facts("b"))
    with pytest.raises(InvalidVmi, match="interfaces: no interface named 'b'"):
        pluggable(vmi({"name": "a", "bridge": {}}), "b", facts("b"))


@pytest.mark.parametrize(("kvm", "vhost", "driver"), [(True, True, "vhost"), (True, False, None), (False, True, None)])
def test_vhost_only_with_kvm_and_device(kvm: bool, vhost: bool, driver: str | None) -> None:
    (element,) = (node.element() for node in interfaces(vmi({"name": "a"}), facts("a", kvm=kvm, vhost=vhost)))
    found = element.find("driver")
    assert (None if found is None else found.get("name")) == driver
    (emulated,) = interfaces(vmi({"name": "a", "model": "e1000e"}), facts("a", kvm=kvm, vhost=vhost))
    assert emulated.element().find("driver") is None


@pytest.mark.parametrize("address", ["00:11.0", "0000:00:11.8", "0000:00:11.0'/><hostdev/>"])
def test_invalid_pci_address_is_rejected(address: str) -> None:
    card = {"name": "a", "bridge": {}, "pciAddress": address}
    with pytest.raises(InvalidVmi, match=r"interfaces\[0\].pciAddress: .* is not a PCI address"):
        pluggable(vmi(card), "a", facts("a"))


def test_interface_name_is_escaped() -> None:
    """Even without validation, it must not become an XML element."""
    name = "a'/><hostdev mode='subsystem'/><alias name='b"
    element = ElementTree.fromstring(pluggable(vmi({"name": name, "bridge": {}}), name, facts(name)).text())
    assert {child.tag for child in element} == {"mac", "target", "model", "rom", "alias"}


def test_child_reports_errors_per_nic() -> None:
    cards = [
        {"name": "good", "dhcpOptions": {"bootFileName": "b", "privateOptions": [{"option": 240, "value": "x"}]}},
        {"name": "old", "model": "e1000"},
        {"name": "strange", "pciAddress": "nowhere"},
    ]
    nics = [{"name": card["name"], "tap": "tap0", "mac": MAC, "mtu": 1500, "queues": 1} for card in cards]
    question = {"vmi": text_of(*cards), "nics": nics, "plug": ["good", "old", "strange", "unknown"]}
    answer = child.answer(question, Paths(), False)
    assert list(answer["devices"]) == ["good"] and answer["devices"]["good"].startswith('<interface type="ethernet">')
    assert list(answer["errors"]) == ["old", "strange", "unknown"]
    assert answer["dhcp_options"] == {"good": [[67, "62"], [240, "78"]]}
    assert child.answer(question | {"vmi": "{"}, Paths(), False)["error"]["code"] == "INVALID_ARGUMENT"
