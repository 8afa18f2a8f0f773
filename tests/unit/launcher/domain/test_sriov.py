import json

import pytest

from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from launcher.domain import sriov
from launcher.domain.facts import InvalidVmi


def vmi(*names: str, **extra: object) -> VirtualMachineInstance:
    interfaces = [{"name": "default", "masquerade": {}}, *({"name": name, "sriov": {}, **extra} for name in names)]
    document = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "namespace": "test"},
        "spec": {"domain": {"devices": {"interfaces": interfaces}}},
    }
    return codec.decode(VirtualMachineInstance, json.dumps(document))


def environment(addresses: str, variable: str = "PCIDEVICE_EXAMPLE_COM_FAST_NICS", **more: str) -> dict[str, str]:
    return {
        "KUBEVIRT_RESOURCE_NAME_a": "example.com/fast-nics",
        "KUBEVIRT_RESOURCE_NAME_b": "example.com/fast-nics",
        variable: addresses,
        **more,
    }


def test_every_address_is_used_once_in_order() -> None:
    given = environment("0000:81:01.2, 0000:81:01.5")
    assert sriov.functions(vmi("a", "b"), given) == {"a": "0000:81:01.2", "b": "0000:81:01.5"}
    assert sriov.functions(vmi("b", "a"), given) == {"b": "0000:81:01.2", "a": "0000:81:01.5"}


def test_addresses_are_assigned_per_resource() -> None:
    given = environment("0000:81:01.2", KUBEVIRT_RESOURCE_NAME_b="other/x.y", PCIDEVICE_OTHER_X_Y="0000:82:00.1")
    assert sriov.functions(vmi("a", "b"), given) == {"a": "0000:81:01.2", "b": "0000:82:00.1"}


def test_variable_name_with_hyphens_is_supported() -> None:
    given = environment("0000:81:01.2", "PCIDEVICE_EXAMPLE_COM_FAST-NICS")
    assert sriov.functions(vmi("a"), given) == {"a": "0000:81:01.2"}


def test_absent_and_other_interfaces_need_no_address() -> None:
    assert sriov.functions(vmi("a", state="absent"), {}) == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "interfaces[1].sriov: network 'a' has no device: KUBEVIRT_RESOURCE_NAME_a is not in the pod's"),
        (
            environment(""),
            "no device of example.com/fast-nics is left for network 'a': the node's device plugin listed 0",
        ),
        (
            environment("0000:81:01.2"),
            "[2].sriov: no device of example.com/fast-nics is left for network 'b'",
        ),
        (environment("0000:81:01.2,0000:81:01.2"), "is left for network 'b': the node's device plugin listed 1"),
        (environment("all of them"), "PCIDEVICE_EXAMPLE_COM_FAST_NICS of the pod's environment has 'all of them'"),
    ],
)
def test_missing_device_names_variable_and_network(given: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidVmi) as raised:
        sriov.functions(vmi("a", "b"), given)
    assert words in str(raised.value)
