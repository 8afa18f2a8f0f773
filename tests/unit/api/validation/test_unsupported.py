"""No field of a VM's spec is ignored: it is supported, or refused with its path."""

from collections.abc import Iterator
from typing import Any

import pytest

from api.kubevirt.kubevirt import KubeVirt
from api.kubevirt.vm import VirtualMachineSpec
from api.kubevirt.vmi import VirtualMachineInstanceSpec
from api.schema.shape import Shape, struct_shape
from api.validation import unsupported
from api.validation.document import validate_document
from api.validation.unsupported import HINTS, KUBEVIRT, VM, VMI
from tests.unit.api.documents import full
from tests.unit.api.vm_manifests import SPEC, machine

LISTS = {
    VirtualMachineSpec: unsupported.SUPPORTED_VM,
    VirtualMachineInstanceSpec: unsupported.SUPPORTED_SPEC,
    struct_shape(KubeVirt).fields["spec"].hint: unsupported.SUPPORTED_KUBEVIRT,
}


def below(shape: Shape, name: str) -> Shape:
    while shape.kind == "list" and shape.item:
        shape = shape.item
    if shape.kind == "map" and shape.item:
        return shape.item
    return shape.fields[name]


@pytest.mark.parametrize("cls", LISTS)
def test_every_supported_path_is_a_field(cls: Any) -> None:
    for path in LISTS[cls]:
        shape = struct_shape(cls)
        for name in path.partition("=")[0].split("."):
            shape = below(shape, name)


def test_no_supported_path_lies_below_another() -> None:
    for paths in LISTS.values():
        bare = [path.partition("=")[0] for path in paths]
        assert len(set(bare)) == len(bare)
        for path in bare:
            assert not [other for other in bare if other.startswith(f"{path}.")], path


def test_every_hint_belongs_to_a_field_that_is_refused() -> None:
    supported = {path for paths in LISTS.values() for path in paths}
    for path in HINTS:
        root = VirtualMachineSpec if path in struct_shape(VirtualMachineSpec).fields else VirtualMachineInstanceSpec
        shape = struct_shape(root)
        for name in path.split("."):
            shape = below(shape, name)
        assert path not in supported


def leaves(value: Any, plain: str = "") -> Iterator[str]:
    """Paths of all leaves, in the format of SUPPORTED."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from leaves(child, f"{plain}.{key}" if plain else key)
    elif isinstance(value, list) and value:
        for child in value:
            yield from leaves(child, plain)
    else:
        yield plain


def test_every_unsupported_field_is_refused_with_its_path() -> None:
    spec = full("VirtualMachineInstance")["spec"]
    refused = {fault.path.replace("[0]", "").removeprefix("spec.") for fault in VMI.faults(spec)}
    supported = [path.partition("=")[0] for path in unsupported.SUPPORTED_SPEC]
    for leaf in leaves(spec):
        covered = [path for path in (*refused, *supported) if leaf == path or leaf.startswith(f"{path}.")]
        # An explicit `false` is equivalent to absence.
        assert covered or _value(spec, leaf) is False, leaf


def _value(spec: Any, leaf: str) -> Any:
    for part in leaf.split("."):
        while isinstance(spec, list):
            spec = spec[0]
        spec = spec[part]
    return spec


@pytest.mark.parametrize(
    ("changes", "path", "hint"),
    [
        ({"domain.devices.gpus": [{"name": "a", "deviceName": "b"}]}, "domain.devices.gpus", "device passthrough"),
        ({"domain.devices.hostDevices": [{"name": "a"}]}, "domain.devices.hostDevices", "device passthrough"),
        ({"domain.devices.tpm": {}}, "domain.devices.tpm", "TPM is not implemented"),
        ({"domain.devices.filesystems": [{"name": "root", "virtiofs": {}}]}, "domain.devices.filesystems",
         "file system sharing"),
        ({"domain.devices.logSerialConsole": False}, "domain.devices.logSerialConsole", "always written"),
        ({"domain.devices.blockMultiQueue": True}, "domain.devices.blockMultiQueue", "not supported"),
        ({"domain.firmware": {"bootloader": {"efi": {}}}}, "domain.firmware.bootloader.efi", "EFI is not implemented"),
        ({"domain.memory.hugepages": {"pageSize": "2Mi"}}, "domain.memory.hugepages", "huge pages"),
        ({"domain.cpu": {"dedicatedCpuPlacement": True}}, "domain.cpu.dedicatedCpuPlacement", "CPU pinning"),
        ({"domain.launchSecurity": {"sev": {}}}, "domain.launchSecurity", "memory encryption"),
        ({"domain.ioThreadsPolicy": "auto"}, "domain.ioThreadsPolicy", "main loop"),
        ({"domain.resources": {"limits": {"example.com/gpu": 1}}}, "domain.resources.limits.example.com/gpu",
         "not supported"),
        ({"volumes.1": {"name": "h", "hostDisk": {"path": "/etc/shadow", "type": "Disk"}}}, "volumes[1].hostDisk",
         "not accessible"),
        ({"volumes.1": {"name": "h", "dataVolume": {"name": "x"}}}, "volumes[1].dataVolume", "PersistentVolumeClaim"),
        ({"volumes.1": {"name": "h", "ephemeral": {}}}, "volumes[1].ephemeral", "ephemeral disks"),
        ({"accessCredentials": [{"sshPublicKey": {"source": {}, "propagationMethod": {}}}]}, "accessCredentials",
         "cloud-init"),
        ({"livenessProbe": {"guestAgentPing": {}}}, "livenessProbe.guestAgentPing", "use tcpSocket"),
        ({"architecture": "arm64"}, "architecture", "only amd64"),
        ({"domain.devices.interfaces.0.tag": "red"}, "domain.devices.interfaces[0].tag", "device metadata"),
        ({"domain.devices.interfaces.0": {"name": "default", "passtBinding": {}}},
         "domain.devices.interfaces[0].passtBinding", "use masquerade"),
        ({"networks.0": {"name": "default", "multus": {"networkName": "n", "default": True}}},
         "networks[0].multus.default", "keeps the cluster network"),
        ({"networks.0": {"name": "default", "resourceClaim": {"claimName": "n"}}}, "networks[0].resourceClaim",
         "multus.networkName"),
        ({"domain.devices.interfaces.0.model": "igb"}, "domain.devices.interfaces[0].model", "'igb' is not supported"),
    ],
)  # fmt: skip
def test_unsupported_vmi_field_is_refused_with_hint(changes: dict[str, Any], path: str, hint: str) -> None:
    faults = {fault.path: fault.message for fault in validate_document(machine(changes))}
    assert hint in faults[f"{SPEC}.{path}"]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"instancetype": {"name": "small"}}, "spec.instancetype"),
        ({"preference": {"name": "fedora"}}, "spec.preference"),
        ({"dataVolumeTemplates": [{"spec": {}}]}, "spec.dataVolumeTemplates"),
        ({"updateVolumesStrategy": "Migration"}, "spec.updateVolumesStrategy"),
        ({"runStrategy": "WaitAsReceiver"}, "spec.runStrategy"),
    ],
)
def test_unsupported_vm_field_is_refused(spec: dict[str, Any], path: str) -> None:
    assert [fault.path for fault in VM.faults(spec)] == [path]


def test_unsupported_kubevirt_settings_are_refused() -> None:
    spec = {
        "imagePullPolicy": "Always",
        "workloadUpdateStrategy": {"workloadUpdateMethods": []},
        "configuration": {
            "developerConfiguration": {"useEmulation": True, "featureGates": ["Snapshot"]},
            "ovmfPath": "/x",
        },
    }
    assert [fault.path for fault in KUBEVIRT.faults(spec)] == [
        "spec.workloadUpdateStrategy",
        "spec.configuration.ovmfPath",
    ]
