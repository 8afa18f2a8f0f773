"""Defaults of absent fields.

Every function is pure, idempotent, and returns a new object. MAC addresses and UUIDs are derived from hashed names, so
that a VM keeps them across restarts and migrations.
"""

import hashlib
import uuid
from typing import TYPE_CHECKING

from msgspec.structs import replace

from api import names
from api.catalogs.machine_types import machine_type
from api.k8s import owners
from api.k8s.meta import ObjectMeta, format_quantity, parse_quantity
from api.kubevirt.devices import CDRomTarget, Devices, Disk, DiskTarget, I6300ESBWatchdog, Watchdog
from api.kubevirt.domain import CPU, DomainSpec, Machine, Memory
from api.kubevirt.networks import Interface, InterfaceBridge, InterfaceMasquerade, Network, PodNetwork
from api.kubevirt.platform import Features, FeatureState, Firmware, SyNICTimer, TLBFlush
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance, VirtualMachineInstanceSpec

if TYPE_CHECKING:
    from api.kubevirt.configuration import KubeVirtConfiguration

DEFAULT_MACHINE = "q35"
DEFAULT_ARCHITECTURE = "amd64"
DEFAULT_BUS = "sata"
"""AHCI works in every guest without additional drivers, including the Windows installer."""
DEFAULT_CPU_MODEL = "host-model"
DEFAULT_GRACE_SECONDS = 30
DEFAULT_NETWORK = "default"
DEFAULT_MODEL = "virtio"

_UUID_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "firmware.kubevirt.io")
_BINDINGS = ("bridge", "masquerade", "sriov", "macvtap", "passt", "passtBinding", "slirp", "binding")


def default_vmi(
    vmi: VirtualMachineInstance, *, config: "KubeVirtConfiguration | None" = None
) -> VirtualMachineInstance:
    """The VMI with all defaults. Faults of an invalid spec are left for `api.validation.validate`."""
    return replace(vmi, spec=default_vmi_spec(vmi.spec, vmi.metadata, config=config))


def default_vmi_spec(
    spec: VirtualMachineInstanceSpec, metadata: ObjectMeta, *, config: "KubeVirtConfiguration | None" = None
) -> VirtualMachineInstanceSpec:
    """The spec with all defaults; `metadata` provides name, namespace and owner."""
    networks, interfaces = _joined(spec)
    domain = spec.domain
    devices = replace(
        domain.devices,
        disks=_disks(spec),
        watchdog=_watchdog(domain.devices.watchdog),
        inputs=[replace(each, bus=each.bus or "usb") for each in domain.devices.inputs or ()] or domain.devices.inputs,
        interfaces=[_interface(interface, networks, metadata, config) for interface in interfaces] or None,
    )
    return replace(
        spec,
        architecture=spec.architecture or _architecture(config),
        domain=_domain(domain, devices, metadata, config),
        networks=networks or None,
        evictionStrategy=spec.evictionStrategy or (config.evictionStrategy if config else None),
        terminationGracePeriodSeconds=(
            DEFAULT_GRACE_SECONDS if spec.terminationGracePeriodSeconds is None else spec.terminationGracePeriodSeconds
        ),
    )


def run_strategy(vm: VirtualMachine) -> str:
    """The effective run strategy: `runStrategy`, else derived from `running`, else Halted."""
    if vm.spec.runStrategy is not None:
        return vm.spec.runStrategy
    return names.RUN_ALWAYS if vm.spec.running else names.RUN_HALTED


def vcpus(spec: VirtualMachineInstanceSpec) -> int:
    """Number of virtual CPUs the guest sees."""
    cpu = spec.domain.cpu or CPU()
    if not (cpu.cores or cpu.sockets or cpu.threads):
        return _cpus_of_resources(spec.domain)
    return (cpu.cores or 1) * (cpu.sockets or 1) * (cpu.threads or 1)


def guest_memory(domain: DomainSpec) -> str | int | None:
    """The guest memory as written: `memory.guest`, else the memory request, else the memory limit, else None."""
    if domain.memory and domain.memory.guest is not None:
        return domain.memory.guest
    resources = domain.resources
    for amounts in (resources.requests, resources.limits) if resources else ():
        if amounts and "memory" in amounts:
            return amounts["memory"]
    return None


def firmware_uuid(metadata: ObjectMeta) -> str:
    """The SMBIOS UUID of a VMI, hashed from namespace and name: a recreated VM keeps its licences."""
    return str(uuid.uuid5(_UUID_NAMESPACE, f"{metadata.namespace or ''}/{metadata.name or ''}"))


def mac_address(metadata: ObjectMeta, interface: str) -> str:
    """A locally administered unicast MAC address (02:…), the same for every VMI of one VM.

    Hashed from the owner VM's UID if present, so that equal names in two clusters on one L2 network do not collide;
    else from namespace and name.
    """
    digest = hashlib.sha256(f"{_identity(metadata)}/{interface}".encode()).digest()
    return "02:" + ":".join(f"{byte:02x}" for byte in digest[:5])


def _identity(metadata: ObjectMeta) -> str:
    owner = owners.controller_of(metadata)
    if owner is not None and owner.kind == names.KIND_VM:
        return owner.uid
    return f"{metadata.namespace or ''}/{metadata.name or ''}"


def _architecture(config: "KubeVirtConfiguration | None") -> str:
    architectures = config.architectureConfiguration if config else None
    return (architectures.defaultArchitecture if architectures else None) or DEFAULT_ARCHITECTURE


def _machine(config: "KubeVirtConfiguration | None") -> str:
    if config is None:
        return DEFAULT_MACHINE
    amd64 = config.architectureConfiguration.amd64 if config.architectureConfiguration else None
    return (amd64.machineType if amd64 else None) or config.machineType or DEFAULT_MACHINE


def _domain(
    domain: DomainSpec, devices: Devices, metadata: ObjectMeta, config: "KubeVirtConfiguration | None"
) -> DomainSpec:
    machine = domain.machine or Machine()
    firmware = domain.firmware or Firmware()
    return replace(
        domain,
        cpu=_cpu(domain, config),
        memory=_memory(domain),
        machine=replace(machine, type=machine_type(machine.type or _machine(config))),
        firmware=replace(firmware, uuid=firmware.uuid or firmware_uuid(metadata)),
        features=_features(domain.features),
        devices=devices,
    )


def _cpu(domain: DomainSpec, config: "KubeVirtConfiguration | None") -> CPU:
    cpu = domain.cpu or CPU()
    if not (cpu.cores or cpu.sockets or cpu.threads):
        cpu = replace(cpu, sockets=_cpus_of_resources(domain))
    return replace(
        cpu,
        cores=cpu.cores or 1,
        sockets=cpu.sockets or 1,
        threads=cpu.threads or 1,
        model=cpu.model or (config.cpuModel if config else None) or DEFAULT_CPU_MODEL,
    )


def _cpus_of_resources(domain: DomainSpec) -> int:
    """CPUs of the limit, else of the request, rounded up; else one."""
    resources = domain.resources
    for amounts in (resources.limits, resources.requests) if resources else ():
        if amounts and "cpu" in amounts:
            try:
                return max(1, -int(-parse_quantity(amounts["cpu"]) // 1))
            except ValueError:
                return 1
    return 1


def _memory(domain: DomainSpec) -> Memory | None:
    amount = guest_memory(domain)
    if amount is None or (domain.memory and domain.memory.guest is not None):
        return domain.memory
    try:
        return replace(domain.memory or Memory(), guest=format_quantity(amount))
    except ValueError:
        return domain.memory


def _disks(spec: VirtualMachineInstanceSpec) -> list[Disk] | None:
    """The disks with a bus, and a disk for every volume without one."""
    devices = spec.domain.devices
    disks = list(devices.disks or ())
    named = {disk.name for disk in disks} | {filesystem.name for filesystem in devices.filesystems or ()}
    disks += [
        Disk(name=volume.name)
        for volume in spec.volumes or ()
        if volume.name not in named and volume.memoryDump is None
    ]
    return [_disk(disk) for disk in disks] or devices.disks


def _disk(disk: Disk) -> Disk:
    if disk.cdrom is not None:
        return replace(disk, cdrom=_cdrom(disk.cdrom))
    if disk.lun is not None:
        return replace(disk, lun=replace(disk.lun, bus=disk.lun.bus or "scsi"))
    target = disk.disk or DiskTarget()
    return replace(disk, disk=replace(target, bus=target.bus or DEFAULT_BUS))


def _cdrom(target: CDRomTarget) -> CDRomTarget:
    read_only = True if target.readonly is None else target.readonly
    return replace(target, bus=target.bus or DEFAULT_BUS, readonly=read_only, tray=target.tray or "closed")


def _features(features: Features | None) -> Features | None:
    """Adds the Hyper-V features that enabled ones depend on: QEMU refuses a feature without its dependencies."""
    hyperv = features.hyperv if features else None
    if features is None or hyperv is None:
        return features
    on = FeatureState(enabled=True)
    if _is_on(hyperv.evmcs) and hyperv.vapic is None:
        hyperv = replace(hyperv, vapic=on)
    if _is_on(hyperv.synictimer) and hyperv.synic is None:
        hyperv = replace(hyperv, synic=on)
    if hyperv.vpindex is None and any(map(_is_on, (hyperv.ipi, hyperv.tlbflush, hyperv.synic))):
        hyperv = replace(hyperv, vpindex=on)
    return replace(features, hyperv=hyperv)


def _is_on(feature: FeatureState | SyNICTimer | TLBFlush | None) -> bool:
    return feature is not None and feature.enabled is not False


def _watchdog(watchdog: Watchdog | None) -> Watchdog | None:
    if watchdog is None or watchdog.diag288 is not None:
        return watchdog
    device = watchdog.i6300esb or I6300ESBWatchdog()
    return replace(watchdog, i6300esb=replace(device, action=device.action or "reset"))


def _joined(spec: VirtualMachineInstanceSpec) -> tuple[list[Network], list[Interface]]:
    """Networks and interfaces; the pod network when both are absent and autoattachPodInterface is not false."""
    networks, interfaces = list(spec.networks or ()), list(spec.domain.devices.interfaces or ())
    if not networks and not interfaces and spec.domain.devices.autoattachPodInterface is not False:
        return [Network(name=DEFAULT_NETWORK, pod=PodNetwork())], [Interface(name=DEFAULT_NETWORK)]
    return networks, interfaces


def _interface(
    interface: Interface, networks: list[Network], metadata: ObjectMeta, config: "KubeVirtConfiguration | None"
) -> Interface:
    network = next((network for network in networks if network.name == interface.name), None)
    if network and all(getattr(interface, binding) is None for binding in _BINDINGS):
        interface = _bound(interface, network, config)
    if interface.macAddress is None and _has_own_mac(interface, network):
        interface = replace(interface, macAddress=mac_address(metadata, interface.name))
    return replace(interface, model=interface.model or DEFAULT_MODEL)


def _has_own_mac(interface: Interface, network: Network | None) -> bool:
    """Whether hyperlet generates the MAC address.

    With a bridge on the pod network the guest takes over the pod's IP and MAC address; an SR-IOV VF has its own MAC.
    """
    if interface.bridge is not None:
        return network is not None and network.multus is not None
    return interface.masquerade is not None


def _bound(interface: Interface, network: Network, config: "KubeVirtConfiguration | None") -> Interface:
    """Sets the binding of an interface without one: masquerade on the pod network unless configured otherwise.

    KubeVirt's default is bridge, which moves the pod's address into the guest and prevents live migration.
    """
    settings = config.network if config else None
    chosen = (settings.defaultNetworkInterface if settings else None) or "masquerade"
    if network.pod is None or chosen == "bridge":
        return replace(interface, bridge=InterfaceBridge())
    return replace(interface, masquerade=InterfaceMasquerade())
