"""Firmware, hypervisor features and clocks of a virtual machine."""

from typing import Literal

from api.k8s.meta import Int32, Struct, UInt32


class HPETTimer(Struct):
    """High precision event timer."""

    present: bool | None = None
    """Off when false; on when the timer is named."""
    tickPolicy: Literal["delay", "catchup", "merge", "discard"] | None = None
    """What happens to ticks that the guest missed: delay, catchup, merge or discard."""


class HypervTimer(Struct):
    """Hyper-V's reference clock."""

    present: bool | None = None
    """Off when false; on when the timer is named."""


class KVMTimer(Struct):
    """KVM's clock."""

    present: bool | None = None
    """Off when false; on when the timer is named."""


class PITTimer(Struct):
    """The old interval timer."""

    present: bool | None = None
    """Off when false; on when the timer is named."""
    tickPolicy: Literal["delay", "catchup", "discard"] | None = None
    """What happens to ticks that the guest missed: delay, catchup or discard."""


class RTCTimer(Struct):
    """The clock with the battery."""

    present: bool | None = None
    """Off when false; on when the timer is named."""
    tickPolicy: Literal["delay", "catchup"] | None = None
    """What happens to ticks that the guest missed: delay or catchup."""
    track: Literal["guest", "wall"] | None = None
    """Whether it follows the guest's time or the host's wall clock."""


class Timer(Struct):
    """Timers that the guest is given; one that is not named is left to the machine."""

    hpet: HPETTimer | None = None
    """High precision event timer."""
    hyperv: HypervTimer | None = None
    """Hyper-V's reference clock, for Windows."""
    kvm: KVMTimer | None = None
    """KVM's paravirtual clock, for Linux."""
    pit: PITTimer | None = None
    """The old interval timer."""
    rtc: RTCTimer | None = None
    """The clock with the battery."""


class ClockOffsetUTC(Struct):
    """UTC, possibly shifted."""

    offsetSeconds: Int32 | None = None
    """Seconds by which the clock is ahead of UTC. With a shift, changes from inside the guest are kept."""


class Clock(Struct):
    """What the guest's clock shows."""

    timer: Timer | None = None
    """Timers that the guest is given."""
    timezone: str | None = None
    """The clock shows the time of this zone, such as Europe/Vienna."""
    utc: ClockOffsetUTC | None = None
    """The clock shows UTC; this is the default."""


class FeatureState(Struct):
    """A switch."""

    enabled: bool | None = None
    """On or off; on when the switch is named without saying so."""


class FeatureAPIC(Struct):
    """The interrupt controller of each CPU."""

    enabled: bool | None = None
    """On or off; on when the switch is named without saying so."""
    endOfInterrupt: bool | None = None
    """Lets the guest end interrupts without leaving to the host."""


class FeatureSpinlocks(Struct):
    """Help with spin locks."""

    enabled: bool | None = None
    """On or off; on when the switch is named without saying so."""
    spinlocks: UInt32 | None = None
    """Number of retries before the hypervisor is notified; 4096 when absent."""


class SyNICTimer(Struct):
    """Synthetic timers of Hyper-V."""

    direct: FeatureState | None = None
    """Timers without the way through the interrupt controller's messages."""
    enabled: bool | None = None
    """On or off; on when the switch is named without saying so."""


class TLBFlush(Struct):
    """Flushing of address caches by one call."""

    direct: FeatureState | None = None
    """Lets a nested guest use it too."""
    enabled: bool | None = None
    """On or off; on when the switch is named without saying so."""
    extended: FeatureState | None = None
    """Lets the guest name the addresses."""


class FeatureVendorID(Struct):
    """The vendor of the hypervisor."""

    enabled: bool | None = None
    """On or off; on when the switch is named without saying so."""
    vendorid: str | None = None
    """Up to 12 characters."""


class FeatureHyperv(Struct):
    """Hyper-V's interfaces, which make Windows run better."""

    evmcs: FeatureState | None = None
    """Faster nested virtualization on Intel."""
    frequencies: FeatureState | None = None
    """Registers with the clock frequencies of TSC and APIC."""
    ipi: FeatureState | None = None
    """Faster interrupts between CPUs."""
    reenlightenment: FeatureState | None = None
    """Tells the guest when its TSC changes by migration."""
    relaxed: FeatureState | None = None
    """Tells the guest not to panic when a timer comes late."""
    reset: FeatureState | None = None
    """A register to reset the machine."""
    runtime: FeatureState | None = None
    """A register with the time that a virtual CPU has run."""
    spinlocks: FeatureSpinlocks | None = None
    """Tells the host when the guest spins for long."""
    synic: FeatureState | None = None
    """The synthetic interrupt controller."""
    synictimer: SyNICTimer | None = None
    """The synthetic timers; need synic."""
    tlbflush: TLBFlush | None = None
    """Flushes other CPUs' address caches by one call."""
    vapic: FeatureState | None = None
    """The paravirtual interrupt controller."""
    vendorid: FeatureVendorID | None = None
    """The vendor that the guest is shown."""
    vpindex: FeatureState | None = None
    """Numbers of virtual CPUs."""


class HyperVPassthrough(Struct):
    """Everything of Hyper-V that the host's KVM can do."""

    enabled: bool | None = None
    """On or off; on when the switch is named without saying so."""


class FeatureKVM(Struct):
    """How KVM shows itself."""

    hidden: bool | None = None
    """Hides from the guest that it runs on KVM."""


class Features(Struct):
    """What the hypervisor offers the guest."""

    acpi: FeatureState | None = None
    """ACPI tables; on when absent. Required for a graceful shutdown through ACPI."""
    apic: FeatureAPIC | None = None
    """The interrupt controller of each CPU."""
    hyperv: FeatureHyperv | None = None
    """What Windows knows from Hyper-V, each switch by itself."""
    hypervPassthrough: HyperVPassthrough | None = None
    """Everything of Hyper-V that the host's KVM can do."""
    kvm: FeatureKVM | None = None
    """How KVM shows itself."""
    pvspinlock: FeatureState | None = None
    """Waits for spin locks with KVM's help."""
    smm: FeatureState | None = None
    """System management mode, which Secure Boot needs."""


class ACPI(Struct):
    """ACPI tables that the guest is given."""

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
    """Keeps the firmware's variables over restarts."""
    secureBoot: bool | None = None
    """Starts only signed boot loaders; the default for UEFI."""


class Bootloader(Struct):
    """The firmware that boots disks; one of the two."""

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
    """A kernel that is booted directly."""

    container: KernelBootContainer | None = None
    """The image that holds kernel and initrd."""
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
    """System UUID in SMBIOS; derived from namespace and name when absent, so that it stays."""
