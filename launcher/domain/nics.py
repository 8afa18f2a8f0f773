"""NICs of the domain: taps created by the handler, and SR-IOV virtual functions."""

from collections.abc import Iterator

from api.kubevirt.networks import Interface
from api.kubevirt.vmi import VirtualMachineInstance
from launcher.domain import types
from launcher.domain.facts import InvalidVmi, NicFacts, PodFacts, required
from launcher.domain.pci import CONVENTIONAL_NICS, address
from launcher.domain.xml import XmlStruct

ALIAS = "ua-nic_"
"""Prefix of NIC aliases. Volume names have no underscore, so it never collides with a disk's alias (`ua-<disk>`)."""
_VIRTIO = "virtio"


def interfaces(vmi: VirtualMachineInstance, facts: PodFacts) -> list[XmlStruct]:
    """The device of each of spec.domain.devices.interfaces, without those in state absent. Raises InvalidVmi."""
    return [_device(interface, path, vmi, facts) for interface, path in _with_paths(vmi) if interface.state != "absent"]


def pluggable(vmi: VirtualMachineInstance, name: str, facts: PodFacts) -> XmlStruct:
    """The device of one interface, for hot-plugging. Raises InvalidVmi."""
    for interface, path in _with_paths(vmi):
        if interface.name == name:
            _refuse_what_needs_a_restart(interface, path)
            return _device(interface, path, vmi, facts)
    raise InvalidVmi(f"spec.domain.devices.interfaces: no interface named {name!r}")


def _refuse_what_needs_a_restart(interface: Interface, path: str) -> None:
    if interface.sriov is not None:
        raise InvalidVmi(f"{path}.sriov: {interface.name!r} cannot be plugged in while the VM runs; restart the VM")
    if interface.model in CONVENTIONAL_NICS:
        raise InvalidVmi(
            f"{path}.model: {interface.name!r} cannot be plugged in while the VM runs, since {interface.model} is not "
            "a PCI Express card; use virtio or e1000e, or restart the VM"
        )


def _with_paths(vmi: VirtualMachineInstance) -> Iterator[tuple[Interface, str]]:
    for index, interface in enumerate(vmi.spec.domain.devices.interfaces or []):
        yield interface, f"spec.domain.devices.interfaces[{index}]"


def _device(interface: Interface, path: str, vmi: VirtualMachineInstance, facts: PodFacts) -> XmlStruct:
    if interface.sriov is not None:
        return _host_device(interface, path, facts)
    nic = next((nic for nic in facts.nics if nic.name == interface.name), None)
    if nic is None:
        raise InvalidVmi(f"{path}.name: the handler has created no tap device for {interface.name!r}")
    return _card(interface, path, nic, vmi, facts)


def _card(
    interface: Interface, path: str, nic: NicFacts, vmi: VirtualMachineInstance, facts: PodFacts
) -> types.Interface:
    model = required(interface.model, f"{path}.model")
    virtio = model == _VIRTIO
    return types.Interface(
        mac=nic.mac,
        target=nic.tap,
        model="virtio-transitional" if virtio and vmi.spec.domain.devices.useVirtioTransitional else model,
        # Only if available: libvirt rejects it otherwise, and does not use it under TCG.
        driver="vhost" if virtio and facts.kvm and facts.vhost else None,
        queues=nic.queues if virtio and nic.queues > 1 else None,
        link="down" if interface.state == "down" else None,
        # Only virtio announces the MTU to the guest; other models get it by DHCP.
        mtu=nic.mtu if virtio and nic.mtu else None,
        # The option ROM is for network boot: without a boot order it delays the start by 0.1 s.
        rom=None if interface.bootOrder else False,
        boot_order=interface.bootOrder,
        acpi_index=interface.acpiIndex,
        alias=ALIAS + interface.name,
        address=_place(interface, path),
    )


def _host_device(interface: Interface, path: str, facts: PodFacts) -> types.HostDevice:
    """A host device. Its MAC was set by the CNI plugin."""
    return types.HostDevice(
        source=types.HostAddress.of(address(facts.functions[interface.name], f"{path}.sriov")),
        rom=None if interface.bootOrder else False,
        boot_order=interface.bootOrder,
        acpi_index=interface.acpiIndex,
        alias=ALIAS + interface.name,
        address=_place(interface, path),
    )


def _place(interface: Interface, path: str) -> types.PciAddress | None:
    return address(interface.pciAddress, f"{path}.pciAddress") if interface.pciAddress else None
