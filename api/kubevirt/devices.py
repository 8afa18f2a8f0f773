"""The devices of a virtual machine, except its network cards (`api.kubevirt.networks`)."""

from typing import Annotated, Literal

from api.k8s.meta import BY_NAME, Int32, Positive32, Struct
from api.kubevirt.networks import Interface
from api.kubevirt.platform import FeatureState

Bus = Literal["virtio", "sata", "scsi", "usb"]


class ClientPassthroughDevices(Struct):
    """USB devices of the client."""


class CustomBlockSize(Struct):
    """Sector sizes in bytes."""

    discardGranularity: Int32 | None = None
    """Discard granularity."""
    logical: Int32 | None = None
    """Logical sector size."""
    physical: Int32 | None = None
    """Physical sector size."""


class BlockSize(Struct):
    """Sector sizes presented to the guest."""

    custom: CustomBlockSize | None = None
    """Explicit sizes."""
    matchVolume: FeatureState | None = None
    """Uses the sizes of the backing storage."""


class CDRomTarget(Struct):
    """A CD-ROM drive."""

    bus: Bus | None = None
    """sata (when absent), scsi or usb."""
    readonly: bool | None = None
    """A CD-ROM is read-only; true when absent."""
    tray: Literal["open", "closed"] | None = None
    """open or closed."""


class DiskTarget(Struct):
    """A disk."""

    bus: Bus | None = None
    """virtio (when absent), sata, scsi or usb."""
    pciAddress: str | None = None
    """PCI address in the guest, for virtio."""
    readonly: bool | None = None
    """Read-only."""


class LunTarget(Struct):
    """A SCSI device that is passed through."""

    bus: Bus | None = None
    """scsi or sata."""
    readonly: bool | None = None
    """Read-only."""
    reservation: bool | None = None
    """Lets the guest use SCSI persistent reservations."""


class Disk(Struct):
    """A disk of the guest, backed by the volume of the same name."""

    name: str
    """Name of the backing volume."""
    blockSize: BlockSize | None = None
    """Sector sizes presented to the guest."""
    bootOrder: Positive32 | None = None
    """Boot order; 1 is first."""
    cache: Literal["none", "writethrough", "writeback"] | None = None
    """Host cache mode: none, writethrough or writeback; depends on the storage when absent."""
    cdrom: CDRomTarget | None = None
    """Attaches the volume as a CD-ROM."""
    changedBlockTracking: bool | None = None
    """Enables changed block tracking, for incremental backups."""
    dedicatedIOThread: bool | None = None
    """Dedicated I/O thread."""
    disk: DiskTarget | None = None
    """Attaches the volume as a disk; the default."""
    errorPolicy: Literal["stop", "ignore", "report", "enospace"] | None = None
    """On a failed request: pause the guest, ignore the error, report it to the guest, or pause on ENOSPC only."""
    io: Literal["native", "threads", "default"] | None = None
    """I/O mode of QEMU: native or threads."""
    lun: LunTarget | None = None
    """Passes a SCSI device through to the guest."""
    serial: str | None = None
    """Serial number that the guest sees."""
    shareable: bool | None = None
    """Allows concurrent use by several VMs, without locking."""
    tag: str | None = None
    """Tag of the disk in the guest's device metadata."""


class DownwardMetrics(Struct):
    """Host metrics as a device."""


class FilesystemVirtiofs(Struct):
    """virtio-fs settings."""


class Filesystem(Struct):
    """A volume that the guest mounts."""

    name: str
    """Name of the volume, and mount tag in the guest."""
    virtiofs: FilesystemVirtiofs
    """Shares the volume through virtio-fs."""


class VGPUDisplayOptions(Struct):
    """Display of a vGPU."""

    enabled: bool | None = None
    """Whether it is enabled; true when absent."""
    ramFB: FeatureState | None = None
    """A frame buffer until the driver is loaded."""


class VGPUOptions(Struct):
    """vGPU settings."""

    display: VGPUDisplayOptions | None = None
    """Display settings."""


class GPU(Struct):
    """A GPU for the guest."""

    name: str
    """Name of the device in this list."""
    claimName: str | None = None
    """Name of the resource claim."""
    deviceName: str | None = None
    """Resource name of the device plugin."""
    requestName: str | None = None
    """Name of the request in the claim."""
    tag: str | None = None
    """Tag of the device in the guest's device metadata."""
    virtualGPUOptions: VGPUOptions | None = None
    """vGPU settings."""


class HostDevice(Struct):
    """A host device for the guest."""

    name: str
    """Name of the device in this list."""
    claimName: str | None = None
    """Name of the resource claim."""
    deviceName: str | None = None
    """Resource name of the device plugin."""
    requestName: str | None = None
    """Name of the request in the claim."""
    tag: str | None = None
    """Tag of the device in the guest's device metadata."""


class Input(Struct):
    """A pointing device."""

    name: str
    """Name of the device in this list."""
    type: Literal["tablet"]
    """tablet."""
    bus: Literal["virtio", "usb"] | None = None
    """usb (when absent) or virtio."""


class PanicDevice(Struct):
    """A device through which the guest reports a crash."""

    model: str | None = None
    """Kind of the device."""


class Rng(Struct):
    """A virtio random number generator."""


class SoundDevice(Struct):
    """A sound card."""

    name: str
    """Name of the device."""
    model: str | None = None
    """ich9 or ac97."""


class TPMDevice(Struct):
    """A trusted platform module."""

    enabled: bool | None = None
    """Whether it is enabled; true when absent."""
    persistent: bool | None = None
    """Keeps its state across restarts."""


class VideoDevice(Struct):
    """A graphics card."""

    type: str | None = None
    """Kind of the card, such as virtio or vga."""


class Diag288Watchdog(Struct):
    """The watchdog of s390x."""

    action: Literal["poweroff", "reset", "shutdown"] | None = None
    """Action on timeout."""


class I6300ESBWatchdog(Struct):
    """The Intel 6300ESB watchdog."""

    action: Literal["poweroff", "reset", "shutdown"] | None = None
    """Action on timeout: reset (when absent), poweroff or shutdown."""


class Watchdog(Struct):
    """A watchdog; exactly one type."""

    name: str
    """Name of the device."""
    diag288: Diag288Watchdog | None = None
    """The diag288 watchdog of s390x."""
    i6300esb: I6300ESBWatchdog | None = None
    """The Intel 6300ESB watchdog."""


class Devices(Struct):
    """Devices of the VM."""

    autoattachGraphicsDevice: bool | None = None
    """Adds a graphics device with VNC; on when absent."""
    autoattachInputDevice: bool | None = None
    """Adds a tablet for absolute pointer positions; off when absent."""
    autoattachMemBalloon: bool | None = None
    """Adds a memory balloon, for memory statistics; on when absent."""
    autoattachPodInterface: bool | None = None
    """Adds the pod network when there are no networks; on when absent."""
    autoattachSerialConsole: bool | None = None
    """Adds a serial console; on when absent."""
    autoattachVSOCK: bool | None = None
    """Adds a VSOCK device; off when absent."""
    blockMultiQueue: bool | None = None
    """One queue per vCPU for virtio disks."""
    clientPassthrough: ClientPassthroughDevices | None = None
    """USB devices that a client redirects to the guest."""
    disableHotplug: bool | None = None
    """Disables hot-plug, so that no free PCI slots are reserved."""
    disks: Annotated[list[Disk], BY_NAME] | None = None
    """Disks and CD-ROMs. A volume without a disk gets a default disk."""
    downwardMetrics: DownwardMetrics | None = None
    """A device that exposes host metrics to the guest."""
    filesystems: list[Filesystem] | None = None
    """Volumes that the guest mounts as file systems instead of disks."""
    gpus: list[GPU] | None = None
    """GPUs or vGPUs that are passed through to the guest."""
    hostDevices: list[HostDevice] | None = None
    """Host devices that are passed through to the guest."""
    inputs: list[Input] | None = None
    """Pointing devices."""
    interfaces: Annotated[list[Interface], BY_NAME] | None = None
    """Network interfaces; each connects to the network of the same name."""
    logSerialConsole: bool | None = None
    """Writes the serial console to the pod's log; on when absent."""
    networkInterfaceMultiqueue: bool | None = None
    """One queue per vCPU for virtio interfaces."""
    panicDevices: list[PanicDevice] | None = None
    """Devices through which the guest reports a crash."""
    rng: Rng | None = None
    """A virtio random number generator."""
    sound: SoundDevice | None = None
    """A sound card."""
    tpm: TPMDevice | None = None
    """A trusted platform module."""
    useVirtioTransitional: bool | None = None
    """Uses transitional virtio devices, for guests without virtio 1.0."""
    video: VideoDevice | None = None
    """Kind of graphics card."""
    watchdog: Watchdog | None = None
    """A watchdog device."""
