"""Every default compared with KubeVirt's, and the table in docs/defaults.md.

Source: kubevirt/kubevirt, pkg/defaults, pkg/storage/vmispec, pkg/network/vmispec, kubevirt.io/api core/v1/defaults.go.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from api.defaults import default_vmi_spec, run_strategy
from api.k8s.meta import ObjectMeta
from api.schema.codec import to_dict
from tests.unit.api.vm_manifests import DELETE, decoded

DOCS = Path(__file__).resolve().parents[3] / "docs" / "defaults.md"
DISK, NIC, DEVICES = "domain.devices.disks.0", "domain.devices.interfaces.0", "domain.devices"
ABSENT = "–"


class Default(NamedTuple):
    """One row. `there` is KubeVirt's value in a VMI, `here` hyperlet's; `why` explains a difference."""

    field: str
    written: dict[str, Any]
    path: str
    there: Any
    here: Any
    why: str = ""


DRIVEN = "the launcher does so without being told"
KUBELET = "the kubelet does so without being told"
DEFAULTS = (
    Default("architecture", {}, "architecture", "amd64", "amd64"),
    Default("domain.machine.type", {}, "domain.machine.type", "q35", "q35"),
    Default("domain.cpu.model", {}, "domain.cpu.model", "host-model", "host-model"),
    Default("domain.cpu.sockets", {}, "domain.cpu.sockets", 1, 1),
    Default("domain.cpu.cores", {}, "domain.cpu.cores", 1, 1),
    Default("domain.cpu.threads", {}, "domain.cpu.threads", 1, 1),
    Default("domain.cpu.sockets, of limits.cpu 2", {"domain.resources": {"limits": {"cpu": "2"}}},
            "domain.cpu.sockets", 2, 2),
    Default("domain.cpu.sockets, of requests.cpu 2", {"domain.resources": {"requests": {"cpu": "2"}}},
            "domain.cpu.sockets", 2, 2),
    Default("domain.cpu.maxSockets", {}, "domain.cpu.maxSockets", 4, None, "CPUs cannot be plugged in yet"),
    Default("domain.memory.guest, of requests.memory 1Gi",
            {"domain.memory": DELETE, "domain.resources": {"requests": {"memory": "1Gi"}}},
            "domain.memory.guest", "1Gi", "1Gi"),
    Default("domain.memory.guest, of limits.memory 1Gi",
            {"domain.memory": DELETE, "domain.resources": {"limits": {"memory": "1Gi"}}},
            "domain.memory.guest", "1Gi", "1Gi"),
    Default("domain.memory.maxGuest", {}, "domain.memory.maxGuest", "4 × guest", None,
            "memory cannot be plugged in yet"),
    Default("domain.resources.requests.cpu, of limits.cpu 2", {"domain.resources": {"limits": {"cpu": "2"}}},
            "domain.resources.requests", {"cpu": "2"}, None, "the pod asks for it all the same"),
    Default("domain.firmware.uuid", {}, "domain.firmware.uuid", "random", "84730aa1-7ff9-5d1b-827a-120e3bc4c982",
            "derived from namespace and name, so that a VM that is made again keeps its licences"),
    Default("domain.features.hyperv.vpindex, of ipi", {"domain.features": {"hyperv": {"ipi": {}}}},
            "domain.features.hyperv.vpindex.enabled", True, True),
    Default("domain.features.hyperv.synic, of synictimer", {"domain.features": {"hyperv": {"synictimer": {}}}},
            "domain.features.hyperv.synic.enabled", True, True),
    Default("domain.features.acpi.enabled, when named", {"domain.features": {"acpi": {}}},
            "domain.features.acpi.enabled", True, None, DRIVEN),
    Default("domain.features.hyperv.spinlocks.spinlocks, when named",
            {"domain.features": {"hyperv": {"spinlocks": {}}}},
            "domain.features.hyperv.spinlocks.spinlocks", 4096, None, DRIVEN),
    Default("domain.clock.timer.….present, when named", {"domain.clock": {"timer": {"hpet": {}}}},
            "domain.clock.timer.hpet.present", True, None, DRIVEN),
    Default("domain.devices.disks[].disk, when no kind is named", {DISK: {"name": "root"}}, f"{DISK}.disk",
            {"bus": "sata"}, {"bus": "sata"}),
    Default("domain.devices.disks[].disk.bus", {DISK: {"name": "root", "disk": {}}}, f"{DISK}.disk.bus",
            "sata", "sata"),
    Default("domain.devices.disks[].cdrom.bus", {DISK: {"name": "root", "cdrom": {}}}, f"{DISK}.cdrom.bus",
            "sata", "sata"),
    Default("domain.devices.disks[].cdrom.readonly", {DISK: {"name": "root", "cdrom": {}}}, f"{DISK}.cdrom.readonly",
            True, True),
    Default("domain.devices.disks[].cdrom.tray", {DISK: {"name": "root", "cdrom": {}}}, f"{DISK}.cdrom.tray",
            "closed", "closed"),
    Default("domain.devices.disks, of a volume that none names", {f"{DEVICES}.disks": DELETE}, f"{DEVICES}.disks",
            [{"name": "root", "disk": {"bus": "sata"}}], [{"name": "root", "disk": {"bus": "sata"}}]),
    Default("domain.devices.interfaces, when neither they nor networks are named",
            {f"{DEVICES}.interfaces": DELETE, "networks": DELETE}, f"{NIC}.name", "default", "default"),
    Default("domain.devices.interfaces[], binding on the pod network", {NIC: {"name": "default"}}, f"{NIC}.masquerade",
            "`bridge`", {}, "a bridge moves the pod's address into the guest, so that it cannot be migrated; "
            "`configuration.network.defaultNetworkInterface` decides"),
    Default("domain.devices.interfaces[].model", {}, f"{NIC}.model", "virtio, by libvirt", "virtio"),
    Default("domain.devices.interfaces[].macAddress", {}, f"{NIC}.macAddress", "random, by libvirt",
            "02:19:b5:49:78:27", "derived from the VM, so that it stays"),
    Default("domain.devices.inputs[].bus", {f"{DEVICES}.inputs": [{"name": "t", "type": "tablet"}]},
            f"{DEVICES}.inputs.0.bus", "usb", "usb"),
    Default("domain.devices.watchdog, when no kind is named", {f"{DEVICES}.watchdog": {"name": "w"}},
            f"{DEVICES}.watchdog.i6300esb", {"action": "reset"}, {"action": "reset"}),
    Default("livenessProbe.timeoutSeconds", {"livenessProbe": {"tcpSocket": {"port": 1}}},
            "livenessProbe.timeoutSeconds", 1, None, KUBELET),
    Default("livenessProbe.periodSeconds", {"livenessProbe": {"tcpSocket": {"port": 1}}},
            "livenessProbe.periodSeconds", 10, None, KUBELET),
    Default("livenessProbe.failureThreshold", {"livenessProbe": {"tcpSocket": {"port": 1}}},
            "livenessProbe.failureThreshold", 3, None, KUBELET),
    Default("volumes[].containerDisk.imagePullPolicy, of tag latest or none",
            {"volumes.0.containerDisk.image": "registry.example/disk"}, "volumes.0.containerDisk.imagePullPolicy",
            "Always", None, KUBELET),
    Default("volumes[].containerDisk.imagePullPolicy, of any other tag", {}, "volumes.0.containerDisk.imagePullPolicy",
            "IfNotPresent", None, KUBELET),
    Default("terminationGracePeriodSeconds", {}, "terminationGracePeriodSeconds", 30, 30),
    Default("evictionStrategy", {}, "evictionStrategy", None, None),
)  # fmt: skip


def value_at(document: Any, path: str) -> Any:
    for step in path.split("."):
        if isinstance(document, list):
            document = document[int(step)] if int(step) < len(document) else None
        else:
            document = document.get(step) if isinstance(document, dict) else None
    return document


@pytest.mark.parametrize("default", DEFAULTS, ids=lambda default: default.field)
def test_a_default(default: Default) -> None:
    spec = decoded(default.written).spec.template.spec
    assert spec is not None
    filled = to_dict(default_vmi_spec(spec, ObjectMeta(name="small", namespace="default")))
    assert value_at(filled, default.path) == default.here
    assert default.there == default.here or default.why or "libvirt" in str(default.there), (
        "a difference needs a reason"
    )


def test_a_vm_without_a_run_strategy_is_halted() -> None:
    assert run_strategy(decoded({"/spec.runStrategy": DELETE})) == "Halted"


def shown(value: Any) -> str:
    if value is None:
        return ABSENT
    if value == {}:
        return "`masquerade`"
    text = str(value).replace("'", "").replace("True", "true")
    return text if text.startswith("`") or (" " in text and "{" not in text) else f"`{text}`"


def table() -> str:
    rows = ["| field | KubeVirt | here | |", "|---|---|---|---|"]
    rows += [f"| {each.field} | {shown(each.there)} | {shown(each.here)} | {each.why} |" for each in DEFAULTS]
    return "\n".join(rows) + "\n"


def test_docs_contain_the_defaults_table() -> None:
    assert table() in DOCS.read_text()
