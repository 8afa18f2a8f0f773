"""Firmware, hypervisor features and clocks of a virtual machine."""

from typing import Literal

from api.k8s.meta import Int32, Struct, UInt32


class HPETTimer(Struct):
    """High precision event timer."""

    present: bool | None = None
    """Whether the timer is present; true when absent."""
    tickPolicy: Literal["delay", "catchup", "merge", "discard"] | None = None
    """Policy for missed ticks: delay, catchup, merge or discard."""


class HypervTimer(Struct):
    """Hyper-V's reference clock."""

    present: bool | None = None
    """Whether the timer is present; true when absent."""


class KVMTimer(Struct):
    """KVM's clock."""

    present: bool | None = None
    """Whether the timer is present; true when absent."""


class PITTimer(Struct):
    """Programmable interval timer."""

    present: bool | None = None
    """Whether the timer is present; true when absent."""
    tickPolicy: Literal["delay", "catchup", "discard"] | None = None
    """Policy for missed ticks: delay, catchup or discard."""


class RTCTimer(Struct):
    """Real-time clock."""

    present: bool | None = None
    """Whether the timer is present; true when absent."""
    tickPolicy: Literal["delay", "catchup"] | None = None
    """Policy for missed ticks: delay or catchup."""
    track: Literal["guest", "wall"] | None = None
    """Whether it follows the guest's time or the host's wall clock."""


class Timer(Struct):
    """Timers of the guest; absent timers have the machine type's default."""

    hpet: HPETTimer | None = None
    """High precision event timer."""
    hyperv: HypervTimer | None = None
    """Hyper-V's reference clock, for Windows."""
    kvm: KVMTimer | None = None
    """KVM's paravirtual clock, for Linux."""
    pit: PITTimer | None = None
    """Programmable interval timer."""
    rtc: RTCTimer | None = None
    """Real-time clock."""


class ClockOffsetUTC(Struct):
    """UTC with an optional offset."""

    offsetSeconds: Int32 | None = None
    """Offset from UTC in seconds. With an offset, changes by the guest are kept."""


class Clock(Struct):
    """Clock of the guest."""

    timer: Timer | None = None
    """Timers of the guest."""
    timezone: str | None = None
    """The clock shows the time of this zone, such as Europe/Vienna."""
    utc: ClockOffsetUTC | None = None
    """The clock shows UTC; this is the default."""


class FeatureState(Struct):
    """State of a feature."""

    enabled: bool | None = None
    """Whether it is enabled; true when absent."""


class FeatureAPIC(Struct):
    """The interrupt controller of each CPU."""

    enabled: bool | None = None
    """Whether it is enabled; true when absent."""
    endOfInterrupt: bool | None = None
    """Enables paravirtual end of interrupt."""


class FeatureSpinlocks(Struct):
    """Spin lock enlightenment."""

    enabled: bool | None = None
    """Whether it is enabled; true when absent."""
    spinlocks: UInt32 | None = None
    """Number of retries before the hypervisor is notified; 4096 when absent."""


class SyNICTimer(Struct):
    """Synthetic timers of Hyper-V."""

    direct: FeatureState | None = None
    """Enables direct synthetic timers."""
    enabled: bool | None = None
    """Whether it is enabled; true when absent."""


class TLBFlush(Struct):
    """TLB flush hypercalls."""

    direct: FeatureState | None = None
    """Enables direct TLB flush for nested guests."""
    enabled: bool | None = None
    """Whether it is enabled; true when absent."""
    extended: FeatureState | None = None
    """Enables extended TLB flush."""


class FeatureVendorID(Struct):
    """The vendor of the hypervisor."""

    enabled: bool | None = None
    """Whether it is enabled; true when absent."""
    vendorid: str | None = None
    """Up to 12 characters."""


class FeatureHyperv(Struct):
    """Hyper-V enlightenments for Windows guests."""

    evmcs: FeatureState | None = None
    """Faster nested virtualization on Intel."""
    frequencies: FeatureState | None = None
    """Registers with the clock frequencies of TSC and APIC."""
    ipi: FeatureState | None = None
    """Faster interrupts between CPUs."""
    reenlightenment: FeatureState | None = None
    """Notifies the guest of TSC changes on migration."""
    relaxed: FeatureState | None = None
    """Relaxes timer checks of the guest."""
    reset: FeatureState | None = None
    """Enables the reset register."""
    runtime: FeatureState | None = None
    """Enables the vCPU runtime register."""
    spinlocks: FeatureSpinlocks | None = None
    """Notifies the hypervisor of long spins."""
    synic: FeatureState | None = None
    """The synthetic interrupt controller."""
    synictimer: SyNICTimer | None = None
    """The synthetic timers; need synic."""
    tlbflush: TLBFlush | None = None
    """Enables TLB flush hypercalls."""
    vapic: FeatureState | None = None
    """The paravirtual interrupt controller."""
    vendorid: FeatureVendorID | None = None
    """Vendor ID presented to the guest."""
    vpindex: FeatureState | None = None
    """Enables the virtual processor index."""


class HyperVPassthrough(Struct):
    """All Hyper-V enlightenments supported by the host."""

    enabled: bool | None = None
    """Whether it is enabled; true when absent."""


class FeatureKVM(Struct):
    """KVM settings."""

    hidden: bool | None = None
    """Hides from the guest that it runs on KVM."""


class Features(Struct):
    """Hypervisor features."""

    acpi: FeatureState | None = None
    """ACPI tables; on when absent. Required for a graceful shutdown through ACPI."""
    apic: FeatureAPIC | None = None
    """The interrupt controller of each CPU."""
    hyperv: FeatureHyperv | None = None
    """Individual Hyper-V enlightenments."""
    hypervPassthrough: HyperVPassthrough | None = None
    """All Hyper-V enlightenments supported by the host."""
    kvm: FeatureKVM | None = None
    """KVM settings."""
    pvspinlock: FeatureState | None = None
    """Paravirtual spin locks."""
    smm: FeatureState | None = None
    """System management mode, required by Secure Boot."""


class ACPI(Struct):
    """Additional ACPI tables."""

    msdmNameRef: str | None = None
    """Secret with the table of a Windows licence (MSDM)."""
    slicNameRef: str | None = None
    """Secret with the table of an older Windows licence (SLIC)."""


class BIOS(Struct):
    """Settings of SeaBIOS."""

    useSerial: bool | None = None
    """Shows the firmware's output on the serial console."""


class EFI(Struct):
    """Settings of UEFI."""

    persistent: bool | None = None
    """Keeps the NVRAM variables across restarts."""
    secureBoot: bool | None = None
    """Enables Secure Boot; the default for UEFI."""


class Bootloader(Struct):
    """The firmware: exactly one of bios and efi."""

    bios: BIOS | None = None
    """SeaBIOS."""
    efi: EFI | None = None
    """UEFI."""


class KernelBootContainer(Struct):
    """A container image with a kernel and an initrd in it."""

    image: str
    """Reference of the image."""
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled."""
    imagePullSecret: str | None = None
    """Secret with the registry's credentials, in the same namespace."""
    initrdPath: str | None = None
    """Absolute path of the initrd inside the image."""
    kernelPath: str | None = None
    """Absolute path of the kernel inside the image."""


class KernelBoot(Struct):
    """Direct kernel boot."""

    container: KernelBootContainer | None = None
    """Image with kernel and initrd."""
    kernelArgs: str | None = None
    """Command line of the kernel."""


class Firmware(Struct):
    """Firmware of the guest."""

    acpi: ACPI | None = None
    """ACPI tables from a Secret."""
    bootloader: Bootloader | None = None
    """BIOS or EFI; BIOS when absent."""
    kernelBoot: KernelBoot | None = None
    """Boots a kernel directly, without a boot loader on a disk."""
    serial: str | None = None
    """System serial number in SMBIOS."""
    uuid: str | None = None
    """System UUID in SMBIOS; derived from namespace and name when absent, and stable."""
