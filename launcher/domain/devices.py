"""The devices of a VMI's domain: one builder per kind, called in a fixed order."""

from collections.abc import Callable, Iterator

from api.kubevirt import devices as given
from api.kubevirt.vmi import VirtualMachineInstance
from launcher.domain import pci, types
from launcher.domain.facts import DiskFacts, InvalidVmi, PodFacts, required
from launcher.domain.nics import interfaces
from launcher.domain.xml import XmlStruct

BALLOON_PERIOD = 10
_PREFIX = {"virtio": "vd", "sata": "sd", "scsi": "sd", "usb": "sd"}

Builder = Callable[[VirtualMachineInstance, PodFacts], list[XmlStruct]]


def build_devices(vmi: VirtualMachineInstance, facts: PodFacts) -> list[XmlStruct]:
    """All devices. Raises InvalidVmi."""
    nodes = [node for builder in _BUILDERS for node in builder(vmi, facts)]
    return [*pci.controllers(vmi, nodes), *nodes]


# -- disks


def disks(vmi: VirtualMachineInstance, facts: PodFacts) -> list[XmlStruct]:
    """One <disk> for each of spec.domain.devices.disks."""
    built: list[XmlStruct] = []
    targets = {"vd": target_names("vd"), "sd": target_names("sd")}
    for index, disk in enumerate(vmi.spec.domain.devices.disks or []):
        source = facts.disks.get(disk.name)
        if source is None:
            raise InvalidVmi(f"spec.domain.devices.disks[{index}].name: no volume named {disk.name!r}")
        built.append(_disk(disk, index, source, targets))
    return built


def target_names(prefix: str) -> Iterator[str]:
    """vda to vdz, vdaa, vdab and so on."""
    number = 0
    while True:
        number += 1
        rest, letters = number, ""
        while rest:
            rest, letter = divmod(rest - 1, 26)
            letters = chr(ord("a") + letter) + letters
        yield prefix + letters


def _disk(disk: given.Disk, index: int, source: DiskFacts, targets: dict[str, Iterator[str]]) -> types.Disk:
    cdrom = disk.cdrom is not None
    path = f"spec.domain.devices.disks[{index}]"
    target = disk.cdrom or disk.disk
    if target is None:
        raise InvalidVmi(f"{path}.disk: required")
    bus = required(target.bus, f"{path}.{'cdrom' if cdrom else 'disk'}.bus")
    # libvirt has no read-only SATA disks. An ephemeral disk may be writable: it is deleted with the pod.
    locked = cdrom or bool(target.readonly) or (source.readonly and not (bus == "sata" and source.ephemeral))
    cache = disk.cache or ("unsafe" if source.ephemeral else "none" if source.direct else "writeback")
    node = types.Disk(
        type="block" if source.block else "file",
        device="cdrom" if cdrom else "disk",
        format=source.format,
        cache=None if locked else cache,
        io=disk.io if disk.io != "default" else None,
        discard=None if locked else "unmap",
        error_policy=disk.errorPolicy,
        target=next(targets[_PREFIX[bus]]),
        bus=bus,
        tray="open" if disk.cdrom and disk.cdrom.tray == "open" else None,
        readonly=locked,
        shareable=bool(disk.shareable),
        serial=disk.serial,
        boot_order=disk.bootOrder,
        alias=f"ua-{disk.name}",
    )
    if source.block:
        node.source_dev = source.path
    else:
        node.source_file = source.path
    if source.backing:
        node.backing_type, node.backing_file, node.backing_format = "file", source.backing, source.backing_format
        node.backing_ends = True  # keeps libvirt from probing the image for further backing files
    if isinstance(target, given.DiskTarget) and target.pciAddress:
        node.address = pci.address(target.pciAddress, f"{path}.disk.pciAddress")
    return node


# -- everything else


def console(vmi: VirtualMachineInstance, facts: PodFacts) -> list[XmlStruct]:
    """The serial port: a socket for `virtctl console`, and a log that the supervisor copies to `kubectl logs`."""
    if vmi.spec.domain.devices.autoattachSerialConsole is False:
        return []
    logged = vmi.spec.domain.devices.logSerialConsole is not False
    return [
        types.Serial(
            path=facts.paths.serial_socket,
            log=facts.paths.serial_fifo if logged else None,
            log_append="on" if logged else None,
        )
    ]


def agent(_: VirtualMachineInstance, facts: PodFacts) -> list[XmlStruct]:
    """The guest agent's virtio-serial channel."""
    return [types.Channel(path=facts.paths.agent_socket, name="org.qemu.guest_agent.0")]


def graphics(vmi: VirtualMachineInstance, facts: PodFacts) -> list[XmlStruct]:
    """VNC on a Unix socket, a VGA card, and a tablet for absolute pointer positions."""
    wanted = vmi.spec.domain.devices
    nodes: list[XmlStruct] = [
        types.Input(type=device.type, bus=required(device.bus, f"spec.domain.devices.inputs[{index}].bus"))
        for index, device in enumerate(wanted.inputs or [])
    ]
    if wanted.autoattachGraphicsDevice is False:
        return nodes
    if not nodes and wanted.autoattachInputDevice is not False:
        nodes.append(types.Input(type="tablet", bus="virtio"))
    model = (wanted.video and wanted.video.type) or "vga"
    return [
        *nodes,
        types.Graphics(socket=facts.paths.vnc_socket),
        types.Video(model=model, heads=1, vram=16384 if model == "vga" else None),
    ]


def rng(_: VirtualMachineInstance, __: PodFacts) -> list[XmlStruct]:
    """A virtio RNG in every VM: without it a guest may wait for entropy at boot."""
    return [types.Rng(model="virtio")]


def balloon(vmi: VirtualMachineInstance, _: PodFacts) -> list[XmlStruct]:
    """The balloon: memory statistics, and free page reporting."""
    if vmi.spec.domain.devices.autoattachMemBalloon is False:
        return [types.Balloon(model="none")]
    return [types.Balloon(model="virtio", free_page_reporting="on", period=BALLOON_PERIOD)]


def panic(vmi: VirtualMachineInstance, _: PodFacts) -> list[XmlStruct]:
    """pvpanic devices, which report a guest kernel panic."""
    asked = [device.model for device in vmi.spec.domain.devices.panicDevices or [] if device.model]
    return [types.Panic(model=model) for model in asked or ["isa"]]


def watchdog(vmi: VirtualMachineInstance, _: PodFacts) -> list[XmlStruct]:
    """The requested watchdog."""
    asked = vmi.spec.domain.devices.watchdog
    if asked is None or asked.i6300esb is None:
        return []
    action = required(asked.i6300esb.action, "spec.domain.devices.watchdog.i6300esb.action")
    return [types.Watchdog(model="i6300esb", action=action)]


def sound(vmi: VirtualMachineInstance, _: PodFacts) -> list[XmlStruct]:
    """The requested sound card, with a null audio backend."""
    asked = vmi.spec.domain.devices.sound
    return [types.Audio(), types.Sound(model=asked.model or "ich9")] if asked else []


_BUILDERS: list[Builder] = [disks, interfaces, console, agent, graphics, rng, balloon, panic, watchdog, sound]
