"""Condition RestartRequired: set for every effective change, with the field's name, and for no other."""

from typing import Any

import msgspec
import pytest

from api import names
from api.kubevirt.configuration import KubeVirtConfiguration
from api.kubevirt.vmi import VirtualMachineInstance
from controller.actions import Create
from controller.vm import semantic_diff, template
from controller.vm.plan import ObservedVm, plan
from controller.vm.status import wanted_conditions
from tests.unit.controller.objects import NOW, SPEC, vm, vmi

Json = dict[str, Any]
RICH: Json = {
    "domain": {
        "cpu": {"cores": 2},
        "memory": {"guest": "1Gi"},
        "resources": {"requests": {"cpu": "500m"}},
        "devices": {
            "disks": [{"name": "a", "disk": {}}, {"name": "b", "cdrom": {}}],
            "inputs": [{"name": "t", "type": "tablet"}],
        },
    },
    "volumes": [
        {"name": "a", "containerDisk": {"image": "i:1"}},
        {"name": "b", "cloudInitNoCloud": {"userData": "x"}},
    ],
    "tolerations": [{"key": "one"}, {"key": "two"}],
    "dnsConfig": {"nameservers": ["10.0.0.1", "10.0.0.2"]},
    "nodeSelector": {"a": "b"},
}


def started(spec: Json, config: KubeVirtConfiguration | None = None, marked: bool = True) -> VirtualMachineInstance:
    found = plan(ObservedVm(vm=vm(spec=spec), now=NOW, configuration=config))
    *_, create = [each for each in found if isinstance(each, Create)]
    base = msgspec.to_builtins(vmi("Running", owner="vm-uid"))
    annotations = create.obj["metadata"]["annotations"] if marked else {}
    meta = {**base["metadata"], "annotations": annotations}
    return msgspec.convert({**base, "metadata": meta, "spec": create.obj["spec"]}, VirtualMachineInstance)


def waiting(spec: Json, instance: VirtualMachineInstance, config: KubeVirtConfiguration | None = None) -> list[str]:
    found = template.difference(vm(spec=spec), instance, config)
    assert found is not None
    return list(found.waiting)


def changed(path: str, value: Any) -> Json:
    document: Json = msgspec.json.decode(msgspec.json.encode(RICH))
    node: Any = document
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    if value is None:
        del node[int(last) if isinstance(node, list) else last]
    elif isinstance(node, list):
        node[int(last) : int(last) + 1] = [value]
    else:
        node[last] = value
    return document


MATTERS = [
    ("domain.cpu.cores", 4, ["domain.cpu.cores"]),
    ("domain.cpu.model", "Haswell", ["domain.cpu.model"]),
    ("domain.memory.guest", "2Gi", ["domain.memory.guest"]),
    ("domain.resources.requests.cpu", "501m", ["domain.resources.requests.cpu"]),
    ("domain.resources", None, ["domain.resources.requests.cpu"]),
    ("domain.machine.type", "pc-q35-9.2", ["domain.machine.type"]),
    ("domain.features.acpi.enabled", False, ["domain.features.acpi"]),
    ("domain.devices.autoattachGraphicsDevice", False, ["domain.devices.autoattachGraphicsDevice"]),
    ("domain.devices.disks.0.serial", "s", ["domain.devices.disks[a].serial"]),
    ("domain.devices.disks.1", {"name": "b", "disk": {}},
     ["domain.devices.disks[b].cdrom", "domain.devices.disks[b].disk"]),
    ("domain.devices.inputs", None, ["domain.devices.inputs"]),
    ("volumes.0.containerDisk.image", "i:2", ["volumes[a].containerDisk.image"]),
    ("volumes.1.cloudInitNoCloud.userData", "y", ["volumes[b].cloudInitNoCloud.userData"]),
    ("tolerations.1", {"key": "three"}, ["tolerations"]),
    ("dnsConfig.nameservers", ["10.0.0.2", "10.0.0.1"], ["dnsConfig.nameservers"]),
    ("nodeSelector", {"a": "c"}, ["nodeSelector"]),
    ("terminationGracePeriodSeconds", 31, ["terminationGracePeriodSeconds"]),
    ("hostname", "h", ["hostname"]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "fields"), MATTERS)
def test_changed_field_is_named_until_reverted(path: str, value: Any, fields: list[str]) -> None:
    instance = started(RICH)
    assert waiting(changed(path, value), instance) == fields
    assert waiting(RICH, instance) == []
    (told,) = [c for c in wanted_conditions(instance, (), False, fields) if c["type"] == "RestartRequired"]
    assert f"since the VM was started: {', '.join(fields)}. Restart" in told["message"]


IS_NOTHING = [
    ("domain.cpu", {"cores": 2, "sockets": 1, "threads": 1}),
    ("domain.memory.guest", "1024Mi"),
    ("domain.resources.requests.cpu", "0.5"),
    ("domain.resources.limits", {}),
    ("domain.machine", {"type": "q35"}),
    ("domain.machine", {}),
    ("domain.devices.disks", [{"name": "b", "cdrom": {"readonly": True}}, {"name": "a", "disk": {"bus": "sata"}}]),
    ("domain.devices.disks", [{"name": "b", "cdrom": {}}]),
    ("domain.devices.disks.0.disk.readonly", False),
    ("domain.devices.autoattachGraphicsDevice", True),
    ("domain.devices.gpus", []),
    ("volumes", [RICH["volumes"][1], RICH["volumes"][0]]),
    ("tolerations", [{"key": "two"}, {"key": "one"}]),
    ("terminationGracePeriodSeconds", 30),
    ("architecture", "amd64"),
    ("affinity", {}),
]


@pytest.mark.parametrize(("path", "value"), IS_NOTHING)
@pytest.mark.parametrize("marked", [True, False])
def test_defaults_order_and_spelling_need_no_restart(path: str, value: Any, marked: bool) -> None:
    assert waiting(changed(path, value), started(RICH, marked=marked)) == []


def test_new_defaults_of_kubevirt_cr_need_no_restart() -> None:
    instance = started(RICH)
    config = KubeVirtConfiguration(cpuModel="Haswell", machineType="pc-q35-9.2", evictionStrategy="LiveMigrate")
    assert waiting(RICH, instance, config) == []
    assert waiting(changed("hostname", "h"), instance, config) == ["hostname"]


def test_invalid_hash_annotation_compares_all_sections() -> None:
    instance = started(RICH)
    for text in ("0123456789abcdef", "", "=,=", "x"):
        meta = msgspec.structs.replace(instance.metadata, annotations={names.ANNOTATION_TEMPLATE: text})
        odd = msgspec.structs.replace(instance, metadata=meta)
        assert waiting(RICH, odd) == []
        assert waiting(changed("hostname", "h"), odd) == ["hostname"]


def test_number_of_named_fields_is_limited() -> None:
    fields = [f"f{number}" for number in range(13)]
    (told,) = [c for c in wanted_conditions(None, (), False, fields) if c["type"] == "RestartRequired"]
    assert "f9 and 3 more. Restart" in told["message"] and "f10" not in told["message"]


def test_template_messages_are_bounded() -> None:
    """Field paths contain names chosen by the user."""
    fields = ["x" * 5000]
    (told,) = [c for c in wanted_conditions(None, (), False, fields) if c["type"] == "RestartRequired"]
    assert len(told["message"]) <= 1500


@pytest.mark.parametrize(
    ("one", "other", "key", "paths"),
    [
        ({"a": 1}, {"a": 1}, "", []),
        (None, {}, "resources", []),
        (None, {}, "masquerade", [""]),
        (None, [], "", []),
        (True, None, "enabled", []),
        (False, None, "enabled", [""]),
        (False, None, "readonly", []),
        ("1Gi", "1024Mi", "guest", []),
        ("x", "y", "guest", [""]),
        ([{"name": "a"}], None, "", [""]),
        ([{"name": "a"}], [{"name": "a", "x": 1}, {"name": "b"}], "", ["[a].x", "[b]"]),
    ],
)
def test_semantic_differences(one: Any, other: Any, key: str, paths: list[str]) -> None:
    assert semantic_diff.differences(one, other, key) == paths == semantic_diff.differences(other, one, key)


def test_hash_depends_only_on_template() -> None:
    assert template.hashes(vm().spec.template.spec) == template.hashes(
        vm(generation=9, run="Manual").spec.template.spec
    )  # type: ignore[arg-type]
    assert waiting(SPEC, started(SPEC)) == []
