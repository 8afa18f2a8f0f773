"""Defaults of absent fields."""

from typing import Any

import pytest

from api.defaults import default_vmi, guest_memory, mac_address, run_strategy, vcpus
from api.k8s.meta import ObjectMeta, OwnerReference
from api.kubevirt.configuration import (
    ArchConfiguration,
    ArchSpecificConfiguration,
    KubeVirtConfiguration,
    NetworkConfiguration,
)
from api.kubevirt.networks import Interface
from api.kubevirt.vmi import VirtualMachineInstance
from api.validation.validate import validate_vmi
from tests.unit.api.vm_manifests import DELETE, decoded

OWNED = ObjectMeta(
    name="small",
    namespace="default",
    ownerReferences=[
        OwnerReference(apiVersion="kubevirt.io/v1", kind="VirtualMachine", name="small", uid="u-1", controller=True)
    ],
)


def filled(
    changes: dict[str, Any] | None = None,
    config: KubeVirtConfiguration | None = None,
    metadata: ObjectMeta = OWNED,
) -> VirtualMachineInstance:
    spec = decoded(changes).spec.template.spec
    assert spec is not None
    vmi = VirtualMachineInstance(
        apiVersion="kubevirt.io/v1", kind="VirtualMachineInstance", metadata=metadata, spec=spec
    )
    result = default_vmi(vmi, config=config)
    assert default_vmi(result, config=config) == result
    assert validate_vmi(result) == []
    return result


def card(vmi: VirtualMachineInstance) -> Interface:
    interfaces = vmi.spec.domain.devices.interfaces
    assert interfaces is not None
    return interfaces[0]


def test_machine_defaults() -> None:
    vmi = filled()
    domain = vmi.spec.domain
    assert domain.machine is not None and domain.machine.type == "q35"
    assert domain.cpu is not None and (domain.cpu.sockets, domain.cpu.cores, domain.cpu.threads) == (1, 1, 1)
    assert domain.cpu.model == "host-model"
    assert vmi.spec.terminationGracePeriodSeconds == 30
    assert vmi.spec.architecture == "amd64"


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ("pc-q35-rhel9.4.0", "pc-q35-8.2"),
        ("pc-q35-rhel9.5.0", "pc-q35-8.2"),
        ("pc-q35-rhel8.6.0", "pc-q35-6.2"),
        ("pc-q35-rhel7.6.0", "pc-q35-2.12"),
        ("pc-q35-rhel10.0.0", "pc-q35-9.1"),
        ("pc-q35-jammy-hpb", "pc-q35-6.2"),
        ("pc-q35-9.2", "pc-q35-9.2"),
    ],
)
def test_distribution_machine_type_maps_to_closest_upstream_type(written: str, given: str) -> None:
    machine = filled({"domain.machine": {"type": written}}).spec.domain.machine
    assert machine is not None and machine.type == given


@pytest.mark.parametrize(
    ("watchdog", "action"),
    [({}, "reset"), ({"i6300esb": {}}, "reset"), ({"i6300esb": {"action": "poweroff"}}, "poweroff")],
)
def test_watchdog_defaults_to_i6300esb_with_reset(watchdog: dict[str, Any], action: str) -> None:
    found = filled({"domain.devices.watchdog": {"name": "w", **watchdog}}).spec.domain.devices.watchdog
    assert found is not None and found.i6300esb is not None and found.i6300esb.action == action


def test_zero_seconds_of_grace_are_kept() -> None:
    assert filled({"terminationGracePeriodSeconds": 0}).spec.terminationGracePeriodSeconds == 0


@pytest.mark.parametrize(
    ("changes", "topology"),
    [
        ({"domain.cpu": {"cores": 2}}, (1, 2, 1)),
        ({"domain.resources": {"requests": {"cpu": "2500m"}}}, (3, 1, 1)),
        ({"domain.resources": {"requests": {"cpu": 1}, "limits": {"cpu": 4}}}, (4, 1, 1)),
        ({"domain.resources": {"requests": {"cpu": 4}}, "domain.cpu": {"threads": 2}}, (1, 1, 2)),
    ],
)
def test_cpu_topology_defaults(changes: dict[str, Any], topology: tuple[int, int, int]) -> None:
    vmi = filled(changes)
    cpu = vmi.spec.domain.cpu
    assert cpu is not None and (cpu.sockets, cpu.cores, cpu.threads) == topology
    sockets, cores, threads = topology
    spec = decoded(changes).spec.template.spec
    assert spec is not None and vcpus(spec) == sockets * cores * threads


@pytest.mark.parametrize(
    ("resources", "guest"),
    [
        ({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}, "1Gi"),
        ({"limits": {"memory": "2Gi"}}, "2Gi"),
        ({"requests": {"memory": "1GB"}}, "1G"),
    ],
)
def test_memory_comes_from_resources(resources: dict[str, Any], guest: str) -> None:
    vmi = filled({"domain.memory": DELETE, "domain.resources": resources})
    assert vmi.spec.domain.memory is not None and vmi.spec.domain.memory.guest == guest
    assert guest_memory(vmi.spec.domain) == guest


def test_a_volume_without_a_disk_gets_one() -> None:
    vmi = filled({"volumes.1": {"name": "data", "emptyDisk": {"capacity": "1Gi"}}})
    disks = vmi.spec.domain.devices.disks or []
    assert [disk.name for disk in disks] == ["root", "data"]
    assert disks[1].disk is not None and disks[1].disk.bus == "sata"


def test_cdrom_defaults_to_sata_and_read_only() -> None:
    vmi = filled({"domain.devices.disks.0": {"name": "root", "cdrom": {}}})
    disk = (vmi.spec.domain.devices.disks or [])[0]
    assert disk.disk is None
    assert disk.cdrom is not None and (disk.cdrom.bus, disk.cdrom.readonly) == ("sata", True)


def test_pod_network_is_added_without_networks() -> None:
    absent = {"networks": DELETE, "domain.devices.interfaces": DELETE}
    vmi = filled(absent)
    assert [(network.name, network.pod is not None) for network in vmi.spec.networks or []] == [("default", True)]
    assert card(vmi).masquerade is not None
    assert card(vmi).model == "virtio"
    declined = filled({**absent, "domain.devices.autoattachPodInterface": False})
    assert (declined.spec.networks, declined.spec.domain.devices.interfaces) == (None, None)


def test_interface_binding_defaults_to_masquerade_unless_configured() -> None:
    bare = {"domain.devices.interfaces.0": {"name": "default"}}
    assert card(filled(bare)).masquerade is not None
    config = KubeVirtConfiguration(network=NetworkConfiguration(defaultNetworkInterface="bridge"))
    spec = decoded(bare).spec.template.spec
    assert spec is not None
    vmi = VirtualMachineInstance(apiVersion="kubevirt.io/v1", kind="VirtualMachineInstance", metadata=OWNED, spec=spec)
    bridged = card(default_vmi(vmi, config=config))
    assert bridged.bridge is not None
    assert (bridged.masquerade, bridged.macAddress) == (None, None)


def test_mac_address_is_stable_per_vm() -> None:
    address = mac_address(OWNED, "default")
    assert card(filled()).macAddress == address == mac_address(OWNED, "default")
    first = int(address[:2], 16)
    assert first & 0b11 == 0b10, "locally administered, unicast"
    assert mac_address(OWNED, "other") != address
    assert mac_address(ObjectMeta(name="small", namespace="default"), "default") != address
    assert (
        card(filled({"domain.devices.interfaces.0.macAddress": "02:00:00:00:00:02"})).macAddress == "02:00:00:00:00:02"
    )


def test_bridge_gets_mac_address_except_on_pod_network() -> None:
    multus = {"networks.0": {"name": "default", "multus": {"networkName": "br1"}}}
    bare, nic = {"domain.devices.interfaces.0": {"name": "default"}}, "domain.devices.interfaces.0"
    bridged = card(filled(multus | bare))
    assert bridged.bridge is not None and bridged.macAddress == mac_address(OWNED, "default")
    assert card(filled({nic: {"name": "default", "bridge": {}}})).macAddress is None
    assert card(filled(multus | {nic: {"name": "default", "sriov": {}}})).macAddress is None


def test_firmware_uuid_is_stable_per_name() -> None:
    def uuid(metadata: ObjectMeta) -> str | None:
        firmware = filled(metadata=metadata).spec.domain.firmware
        assert firmware is not None
        return firmware.uuid

    assert uuid(OWNED) == uuid(ObjectMeta(name="small", namespace="default"))
    assert uuid(OWNED) != uuid(ObjectMeta(name="small", namespace="other"))


def test_configuration_overrides_defaults() -> None:
    config = KubeVirtConfiguration(
        cpuModel="Haswell",
        machineType="q35",
        evictionStrategy="LiveMigrate",
        architectureConfiguration=ArchConfiguration(amd64=ArchSpecificConfiguration(machineType="pc-q35-9.2")),
    )
    spec = filled(config=config).spec
    assert spec.domain.cpu is not None and spec.domain.cpu.model == "Haswell"
    assert spec.domain.machine is not None and spec.domain.machine.type == "pc-q35-9.2"
    assert spec.evictionStrategy == "LiveMigrate"
    own = filled({"domain.cpu": {"model": "host-model"}, "evictionStrategy": "None"}, config).spec
    assert own.domain.cpu is not None and own.domain.cpu.model == "host-model"
    assert own.evictionStrategy == "None"


@pytest.mark.parametrize(
    ("changes", "strategy"),
    [
        ({"/spec.runStrategy": DELETE}, "Halted"),
        ({"/spec.runStrategy": DELETE, "/spec.running": False}, "Halted"),
        ({"/spec.runStrategy": DELETE, "/spec.running": True}, "Always"),
        ({"/spec.runStrategy": "Manual"}, "Manual"),
    ],
)
def test_run_strategy(changes: dict[str, Any], strategy: str) -> None:
    assert run_strategy(decoded(changes)) == strategy
