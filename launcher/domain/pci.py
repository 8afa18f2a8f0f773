"""The guest's PCI topology: requested addresses, and a port for every device.

PCI Express devices have a root port each; conventional ones share one bridge, which has a root port of its own
(https://libvirt.org/pci-hotplug.html).
"""

import re

from api.kubevirt.vmi import VirtualMachineInstance
from launcher.domain import types
from launcher.domain.facts import InvalidVmi
from launcher.domain.xml import XmlStruct

SPARE_PORTS = 4
"""Free PCI Express ports, for hot-plugging."""
CONVENTIONAL_NICS = frozenset({"e1000", "ne2k_pci", "pcnet", "rtl8139"})
"""Conventional PCI models, which cannot be hot-plugged."""
_BEHIND_BRIDGE = frozenset({"e1000", "rtl8139"})
"""libvirt treats the other two, which it knows by name only, as PCI Express: QEMU and guests accept that."""
_CONVENTIONAL_SOUND = frozenset({"ac97", "es1370"})
_ADDRESS = re.compile(r"([0-9a-fA-F]{4}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])")


def address(text: str, path: str) -> types.PciAddress:
    """A parsed address. Raises InvalidVmi, which names `path`."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise InvalidVmi(f"{path}: {text!r} is not a PCI address such as 0000:81:01.0")
    domain, bus, slot, function = match.groups()
    return types.PciAddress(domain=f"0x{domain}", bus=f"0x{bus}", slot=f"0x{slot}", function=f"0x{function}")


def controllers(vmi: VirtualMachineInstance, nodes: list[XmlStruct]) -> list[XmlStruct]:
    """The root complex, a port for each PCI Express device plus spare ones, and SCSI and USB controllers if used."""
    buses = {node.bus for node in nodes if isinstance(node, types.Disk | types.Input)}
    extra: list[XmlStruct] = [types.Controller(type="virtio-serial", index=0)]
    if "scsi" in buses:
        extra.append(types.Controller(type="scsi", index=0, model="virtio-scsi"))
    usb = "usb" in buses
    extra.append(types.Controller(type="usb", index=0, model="qemu-xhci" if usb else "none"))
    spare = 0 if vmi.spec.domain.devices.disableHotplug else SPARE_PORTS
    bridge = any(map(_is_conventional, nodes))
    ports = sum(map(_needs_port, nodes)) + len(extra) - (not usb) + bridge + spare
    pci = [
        # First: libvirt assigns ports to it in order of appearance.
        types.Controller(type="pci", index=0, model="pcie-root"),
        *(types.Controller(type="pci", index=number, model="pcie-root-port") for number in range(1, ports + 1)),
    ]
    if bridge:
        # libvirt would add it automatically, and use a spare port for it.
        pci.append(types.Controller(type="pci", index=ports + 1, model="pcie-to-pci-bridge"))
    return [*pci, *extra]


def _is_conventional(node: XmlStruct) -> bool:
    """Whether libvirt places it behind the bridge."""
    match node:
        case types.Interface(model=model, address=place):
            return place is None and model in _BEHIND_BRIDGE
        case types.Watchdog():
            return True
        case types.Sound(model=model):
            return model in _CONVENTIONAL_SOUND
        case _:
            return False


def _needs_port(node: XmlStruct) -> bool:
    """Whether libvirt places it behind a PCI Express port of its own."""
    match node:
        case types.Disk(bus=bus, address=place):
            return bus == "virtio" and place is None
        case types.Input(bus=bus):
            return bool(bus == "virtio")
        case types.Interface(model=model, address=place):
            return place is None and model not in _BEHIND_BRIDGE
        case types.HostDevice(address=place):
            return place is None
        case types.Rng():
            return True
        case types.Balloon(model=model):
            return model != "none"
        case _:
            return False
