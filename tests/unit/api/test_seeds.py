"""User-supplied manifests: accepted, or refused with the missing field."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from api.defaults import default_vmi
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance
from api.schema.codec import decode_strict, to_dict
from api.validation.document import validate_document
from api.validation.unsupported import HINTS
from api.validation.validate import validate_vm, validate_vmi, warnings

SEEDS = Path(__file__).parents[2] / "golden" / "seed-manifests"


def seed(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((SEEDS / f"{name}.yaml").read_text())
    return document


def vmi_of(vm: VirtualMachine) -> VirtualMachineInstance:
    assert vm.spec.template.spec is not None
    return VirtualMachineInstance(
        apiVersion="kubevirt.io/v1", kind="VirtualMachineInstance", metadata=vm.metadata, spec=vm.spec.template.spec
    )


@pytest.mark.parametrize("name", ["vm-cloudinit", "vm-masquerade-containerdisk", "vm-bridge-multus"])
def test_complete_manifests_are_accepted(name: str) -> None:
    document = seed(name)
    assert validate_document(document) == []
    vm = decode_strict(VirtualMachine, document)
    assert to_dict(vm) == document
    vmi = default_vmi(vmi_of(vm))
    assert validate_vmi(vmi) == []
    assert default_vmi(vmi) == vmi


SPEC = "spec.template.spec"
REFUSED = "not supported by this version of hyperlet: "
REFUSALS = {
    "vm-running-false": {
        f"{SPEC}.domain.devices.disks[0].name": "disk 'rootfs' has no volume with the same name",
        f"{SPEC}.domain.devices.interfaces[0].name": "interface 'default' has no network with the same name",
    },
    "vm-datavolumetemplate": {
        "spec.dataVolumeTemplates": REFUSED + HINTS["dataVolumeTemplates"],
        "spec.template": "required",
    },
}


@pytest.mark.parametrize(("name", "faults"), REFUSALS.items())
def test_incomplete_manifests_are_refused_with_paths(name: str, faults: dict[str, str]) -> None:
    assert {fault.path: fault.message for fault in validate_document(seed(name))} == faults


def test_running_false_manifest_is_valid_with_volume_and_network() -> None:
    document = seed("vm-running-false")
    spec = document["spec"]["template"]["spec"]
    spec["volumes"] = [{"name": "rootfs", "containerDisk": {"image": "registry.example/disk:1"}}]
    spec["networks"] = [{"name": "default", "pod": {}}]
    assert validate_document(document) == []
    vm = decode_strict(VirtualMachine, document)
    assert validate_vm(vm) == []
    vmi = default_vmi(vmi_of(vm))
    assert vmi.spec.domain.memory is not None
    assert vmi.spec.domain.memory.guest == "1G"
    interfaces = vmi.spec.domain.devices.interfaces or []
    assert interfaces[0].masquerade is not None
    assert any("1GB is read as 1G" in warning for warning in warnings(vm))
