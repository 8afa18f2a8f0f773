"""The elements of libvirt's domain XML that hyperlet uses.

Source: https://libvirt.org/formatdomain.html; the classes are named after its elements. Sizes are bytes.
"""

from typing import ClassVar
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from launcher.domain.xml import XmlStruct, at

METADATA_URI = "urn:hyperlet:vmi:1"
QEMU_URI = "http://libvirt.org/schemas/domain/qemu/1.0"
ElementTree.register_namespace("hyperlet", METADATA_URI)
ElementTree.register_namespace("qemu", QEMU_URI)


class Metadata(XmlStruct, kw_only=True):
    """The VMI's identity, for users of virsh."""

    TAG: ClassVar[str] = "metadata"
    namespace: str
    name: str
    uid: str

    def element(self) -> Element:
        """The element in a custom namespace, as libvirt requires."""
        root = ElementTree.Element(self.TAG)
        vmi = ElementTree.SubElement(root, f"{{{METADATA_URI}}}vmi")
        for key in ("namespace", "name", "uid"):
            vmi.set(key, getattr(self, key))
        return root


class PciAddress(XmlStruct, kw_only=True):
    """<address type='pci'>."""

    TAG: ClassVar[str] = "address"
    type: str = at("@type", "pci")
    domain: str = at("@domain")
    bus: str = at("@bus")
    slot: str = at("@slot")
    function: str = at("@function")


class Os(XmlStruct, kw_only=True):
    """<os>: firmware and what it boots."""

    TAG: ClassVar[str] = "os"
    arch: str = at("type/@arch", "x86_64")
    machine: str = at("type/@machine")
    type: str = at("type/text()", "hvm")
    kernel: str | None = at("kernel/text()")
    initrd: str | None = at("initrd/text()")
    cmdline: str | None = at("cmdline/text()")
    bios_serial: bool | None = at("bios/@useserial")
    smbios: str | None = at("smbios/@mode")


class SysinfoEntry(XmlStruct, kw_only=True):
    """<entry> of <sysinfo>."""

    TAG: ClassVar[str] = "entry"
    name: str = at("@name")
    value: str = at("text()")


class SystemEntries(XmlStruct, kw_only=True):
    """SMBIOS type 1."""

    TAG: ClassVar[str] = "system"
    entries: list[SysinfoEntry] = []


class ChassisEntries(XmlStruct, kw_only=True):
    """SMBIOS type 3."""

    TAG: ClassVar[str] = "chassis"
    entries: list[SysinfoEntry] = []


class Sysinfo(XmlStruct, kw_only=True):
    """<sysinfo type='smbios'>."""

    TAG: ClassVar[str] = "sysinfo"
    type: str = at("@type", "smbios")
    system: SystemEntries | None = None
    chassis: ChassisEntries | None = None


class Hyperv(XmlStruct, kw_only=True):
    """<hyperv>: paravirtualization for Windows; values are `on` and `off`."""

    TAG: ClassVar[str] = "hyperv"
    mode: str | None = at("@mode")
    relaxed: str | None = at("relaxed/@state")
    vapic: str | None = at("vapic/@state")
    spinlocks: str | None = at("spinlocks/@state")
    spinlock_retries: int | None = at("spinlocks/@retries")
    vpindex: str | None = at("vpindex/@state")
    runtime: str | None = at("runtime/@state")
    synic: str | None = at("synic/@state")
    stimer: str | None = at("stimer/@state")
    stimer_direct: str | None = at("stimer/direct/@state")
    reset: str | None = at("reset/@state")
    vendor_id: str | None = at("vendor_id/@state")
    vendor_id_value: str | None = at("vendor_id/@value")
    frequencies: str | None = at("frequencies/@state")
    reenlightenment: str | None = at("reenlightenment/@state")
    tlbflush: str | None = at("tlbflush/@state")
    tlbflush_direct: str | None = at("tlbflush/direct/@state")
    tlbflush_extended: str | None = at("tlbflush/extended/@state")
    ipi: str | None = at("ipi/@state")
    evmcs: str | None = at("evmcs/@state")


class Features(XmlStruct, kw_only=True):
    """<features>."""

    TAG: ClassVar[str] = "features"
    acpi: bool | None = at("acpi/")
    apic: bool | None = at("apic/")
    apic_eoi: str | None = at("apic/@eoi")
    hyperv: Hyperv | None = None
    kvm_hidden: str | None = at("kvm/hidden/@state")
    pvspinlock: str | None = at("pvspinlock/@state")
    smm: str | None = at("smm/@state")
    vmport: str | None = at("vmport/@state")
    tb_cache: int | None = at("tcg/tb-cache/text()")
    tb_cache_unit: str | None = at("tcg/tb-cache/@unit")


class CpuFeature(XmlStruct, kw_only=True):
    """<feature> of <cpu>."""

    TAG: ClassVar[str] = "feature"
    policy: str = at("@policy")
    name: str = at("@name")


class Cpu(XmlStruct, kw_only=True):
    """<cpu>."""

    TAG: ClassVar[str] = "cpu"
    mode: str = at("@mode")
    match: str | None = at("@match")
    check: str | None = at("@check")
    model: str | None = at("model/text()")
    fallback: str | None = at("model/@fallback")
    sockets: int = at("topology/@sockets")
    cores: int = at("topology/@cores")
    threads: int = at("topology/@threads")
    features: list[CpuFeature] = []


class Timer(XmlStruct, kw_only=True):
    """<timer> of <clock>."""

    TAG: ClassVar[str] = "timer"
    name: str = at("@name")
    tickpolicy: str | None = at("@tickpolicy")
    track: str | None = at("@track")
    present: bool | None = at("@present")


class Clock(XmlStruct, kw_only=True):
    """<clock>."""

    TAG: ClassVar[str] = "clock"
    offset: str = at("@offset", "utc")
    adjustment: str | None = at("@adjustment")
    timezone: str | None = at("@timezone")
    timers: list[Timer] = []


class Controller(XmlStruct, kw_only=True):
    """<controller>."""

    TAG: ClassVar[str] = "controller"
    type: str = at("@type")
    index: int | None = at("@index")
    model: str | None = at("@model")


class Disk(XmlStruct, kw_only=True):
    """<disk>: `source_file` or `source_dev`, depending on `type`."""

    TAG: ClassVar[str] = "disk"
    type: str = at("@type")
    device: str = at("@device", "disk")
    model: str | None = at("@model")
    driver: str = at("driver/@name", "qemu")
    format: str = at("driver/@type")
    cache: str | None = at("driver/@cache")
    io: str | None = at("driver/@io")
    discard: str | None = at("driver/@discard")
    error_policy: str | None = at("driver/@error_policy")
    queues: int | None = at("driver/@queues")
    iothread: int | None = at("driver/@iothread")
    source_file: str | None = at("source/@file")
    source_dev: str | None = at("source/@dev")
    backing_type: str | None = at("backingStore/@type")
    backing_format: str | None = at("backingStore/format/@type")
    backing_file: str | None = at("backingStore/source/@file")
    backing_ends: bool | None = at("backingStore/backingStore/")
    target: str = at("target/@dev")
    bus: str = at("target/@bus")
    tray: str | None = at("target/@tray")
    logical_block_size: int | None = at("blockio/@logical_block_size")
    physical_block_size: int | None = at("blockio/@physical_block_size")
    readonly: bool | None = at("readonly/")
    shareable: bool | None = at("shareable/")
    serial: str | None = at("serial/text()")
    boot_order: int | None = at("boot/@order")
    alias: str = at("alias/@name")
    address: PciAddress | None = None


class Interface(XmlStruct, kw_only=True):
    """<interface type='ethernet'>: a tap created by the handler."""

    TAG: ClassVar[str] = "interface"
    type: str = at("@type", "ethernet")
    mac: str = at("mac/@address")
    target: str = at("target/@dev")
    managed: bool = at("target/@managed", False)
    model: str = at("model/@type")
    driver: str | None = at("driver/@name")
    queues: int | None = at("driver/@queues")
    link: str | None = at("link/@state")
    mtu: int | None = at("mtu/@size")
    rom: bool | None = at("rom/@enabled")
    boot_order: int | None = at("boot/@order")
    acpi_index: int | None = at("acpi/@index")
    alias: str = at("alias/@name")
    address: PciAddress | None = None


class HostAddress(XmlStruct, kw_only=True):
    """<source> of a <hostdev>: the device's host PCI address."""

    TAG: ClassVar[str] = "source"
    domain: str = at("address/@domain")
    bus: str = at("address/@bus")
    slot: str = at("address/@slot")
    function: str = at("address/@function")

    @classmethod
    def of(cls, address: PciAddress) -> "HostAddress":
        """From a PciAddress."""
        return cls(domain=address.domain, bus=address.bus, slot=address.slot, function=address.function)


class HostDevice(XmlStruct, kw_only=True):
    """<hostdev> of a PCI device; not `managed`: the node has bound it to vfio-pci already."""

    TAG: ClassVar[str] = "hostdev"
    mode: str = at("@mode", "subsystem")
    type: str = at("@type", "pci")
    managed: bool = at("@managed", False)
    source: HostAddress
    rom: bool | None = at("rom/@enabled")
    boot_order: int | None = at("boot/@order")
    acpi_index: int | None = at("acpi/@index")
    alias: str = at("alias/@name")
    address: PciAddress | None = None


class Serial(XmlStruct, kw_only=True):
    """<serial type='unix'>."""

    TAG: ClassVar[str] = "serial"
    type: str = at("@type", "unix")
    mode: str = at("source/@mode", "bind")
    path: str = at("source/@path")
    log: str | None = at("log/@file")
    log_append: str | None = at("log/@append")
    target_type: str = at("target/@type", "isa-serial")
    port: int = at("target/@port", 0)


class Channel(XmlStruct, kw_only=True):
    """<channel type='unix'> over virtio-serial."""

    TAG: ClassVar[str] = "channel"
    type: str = at("@type", "unix")
    mode: str = at("source/@mode", "bind")
    path: str = at("source/@path")
    target_type: str = at("target/@type", "virtio")
    name: str = at("target/@name")


class Graphics(XmlStruct, kw_only=True):
    """<graphics type='vnc'> on a Unix socket. sharePolicy ignore: a client cannot disconnect the others."""

    TAG: ClassVar[str] = "graphics"
    type: str = at("@type", "vnc")
    share: str = at("@sharePolicy", "ignore")
    listen: str = at("listen/@type", "socket")
    socket: str = at("listen/@socket")


class Video(XmlStruct, kw_only=True):
    """<video>. `vram` is KiB."""

    TAG: ClassVar[str] = "video"
    model: str = at("model/@type")
    heads: int | None = at("model/@heads")
    vram: int | None = at("model/@vram")


class Input(XmlStruct, kw_only=True):
    """<input>."""

    TAG: ClassVar[str] = "input"
    type: str = at("@type")
    bus: str = at("@bus")


class Rng(XmlStruct, kw_only=True):
    """<rng>."""

    TAG: ClassVar[str] = "rng"
    model: str = at("@model")
    backend_model: str = at("backend/@model", "random")
    backend: str = at("backend/text()", "/dev/urandom")


class Balloon(XmlStruct, kw_only=True):
    """<memballoon>. `period` is seconds."""

    TAG: ClassVar[str] = "memballoon"
    model: str = at("@model")
    free_page_reporting: str | None = at("@freePageReporting")
    period: int | None = at("stats/@period")


class Panic(XmlStruct, kw_only=True):
    """<panic>."""

    TAG: ClassVar[str] = "panic"
    model: str = at("@model")


class Watchdog(XmlStruct, kw_only=True):
    """<watchdog>."""

    TAG: ClassVar[str] = "watchdog"
    model: str = at("@model")
    action: str = at("@action")


class Sound(XmlStruct, kw_only=True):
    """<sound>."""

    TAG: ClassVar[str] = "sound"
    model: str = at("@model")


class Audio(XmlStruct, kw_only=True):
    """<audio>."""

    TAG: ClassVar[str] = "audio"
    id: int = at("@id", 1)
    type: str = at("@type", "none")


class Devices(XmlStruct, kw_only=True):
    """<devices>."""

    TAG: ClassVar[str] = "devices"
    emulator: str | None = at("emulator/text()")
    nodes: list[XmlStruct] = []


class QemuCapabilities(XmlStruct, kw_only=True):
    """<qemu:capabilities>: overrides of QEMU's detected capabilities. Source: https://libvirt.org/drvqemu.html."""

    TAG: ClassVar[str] = f"{{{QEMU_URI}}}capabilities"
    without: list[str]

    def element(self) -> Element:
        """The element in libvirt's QEMU namespace."""
        root = ElementTree.Element(self.TAG)
        for name in self.without:
            ElementTree.SubElement(root, f"{{{QEMU_URI}}}del").set("capability", name)
        return root


class Domain(XmlStruct, kw_only=True):
    """<domain>. `type` is kvm or qemu."""

    TAG: ClassVar[str] = "domain"
    type: str = at("@type")
    name: str = at("name/text()")
    uuid: str = at("uuid/text()")
    metadata: Metadata
    memory: int = at("memory/text()")
    memory_unit: str = at("memory/@unit", "b")
    vcpu: int = at("vcpu/text()")
    iothreads: int | None = at("iothreads/text()")
    sysinfo: Sysinfo
    os: Os
    features: Features
    cpu: Cpu
    clock: Clock
    on_poweroff: str = at("on_poweroff/text()", "destroy")
    on_reboot: str = at("on_reboot/text()", "restart")
    on_crash: str = at("on_crash/text()", "destroy")
    devices: Devices
    qemu_capabilities: QemuCapabilities | None = None
