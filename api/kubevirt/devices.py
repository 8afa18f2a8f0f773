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
    """Least number of bytes that can be given back at once."""
    logical: Int32 | None = None
    """Size by which the guest addresses."""
    physical: Int32 | None = None
    """Size that is written at once."""


class BlockSize(Struct):
    """Sector sizes that the guest is shown."""

    custom: CustomBlockSize | None = None
    """Sizes in numbers."""
    matchVolume: FeatureState | None = None
    """Sizes of the storage behind the volume."""


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
    """Place on the guest's PCI bus, for virtio."""
    readonly: bool | None = None
    """The guest cannot write."""


class LunTarget(Struct):
    """A SCSI device that is passed through."""

    bus: Bus | None = None
    """scsi or sata."""
    readonly: bool | None = None
    """The guest cannot write."""
    reservation: bool | None = None
    """Lets the guest use SCSI persistent reservations."""


class Disk(Struct):
    """A disk that the guest sees. Its content is the volume of the same name."""

    name: str
    """Name of the volume that is the content."""
    blockSize: BlockSize | None = None
    """Sector sizes that the guest is shown."""
    bootOrder: Positive32 | None = None
    """Place in the order in which devices are tried for booting; 1 comes first."""
    cache: Literal["none", "writethrough", "writeback"] | None = None
    """Caching of the host: none, writethrough or writeback; chosen to fit the storage when absent."""
    cdrom: CDRomTarget | None = None
    """Shows the volume as a CD-ROM."""
    changedBlockTracking: bool | None = None
    """Keeps account of changed blocks, for incremental backups."""
    dedicatedIOThread: bool | None = None
    """Gives this disk an I/O thread of its own."""
    disk: DiskTarget | None = None
    """Shows the volume as a disk; the default."""
    errorPolicy: Literal["stop", "ignore", "report", "enospace"] | None = None
    """On a failed request: pause the guest, ignore the error, report it to the guest, or pause on ENOSPC only."""
    io: Literal["native", "threads", "default"] | None = None
    """How QEMU issues requests: native or threads."""
    lun: LunTarget | None = None
    """Hands a SCSI device through to the guest."""
    serial: str | None = None
    """Serial number that the guest sees."""
    shareable: bool | None = None
    """Several VMs may use the disk at once; there is no lock then."""
    tag: str | None = None
    """Word that the guest finds in its metadata for this disk."""


class DownwardMetrics(Struct):
    """Host metrics as a device."""


class FilesystemVirtiofs(Struct):
    """Sharing by virtio-fs."""


class Filesystem(Struct):
    """A volume that the guest mounts."""

    name: str
    """Name of the volume, and tag by which the guest mounts it."""
    virtiofs: FilesystemVirtiofs
    """Shares it by virtio-fs."""


class VGPUDisplayOptions(Struct):
    """Screen of a slice of a graphics card."""

    enabled: bool | None = None
    """On or off; on when the switch is named without saying so."""
    ramFB: FeatureState | None = None
    """A simple frame buffer until the driver is loaded."""


class VGPUOptions(Struct):
    """Settings of a slice of a graphics card."""

    display: VGPUDisplayOptions | None = None
    """Its screen."""


class GPU(Struct):
    """A graphics card for the guest."""

    name: str
    """Name of the device in this list."""
    claimName: str | None = None
    """The resource claim it comes from."""
    deviceName: str | None = None
    """Resource name under which device plugins offer it."""
    requestName: str | None = None
    """The request in the claim."""
    tag: str | None = None
    """Word that the guest finds in its metadata for this device."""
    virtualGPUOptions: VGPUOptions | None = None
    """Settings of a slice of a card."""


class HostDevice(Struct):
    """A device of the host for the guest."""

    name: str
    """Name of the device in this list."""
    claimName: str | None = None
    """The resource claim it comes from."""
    deviceName: str | None = None
    """Resource name under which device plugins offer it."""
    requestName: str | None = None
    """The request in the claim."""
    tag: str | None = None
    """Word that the guest finds in its metadata for this device."""


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
    """Random numbers from the host."""


class SoundDevice(Struct):
    """A sound card."""

    name: str
    """Name of the device."""
    model: str | None = None
    """ich9 or ac97."""


class TPMDevice(Struct):
    """A trusted platform module."""

    enabled: bool | None = None
    """On or off; on when the switch is named without saying so."""
    persistent: bool | None = None
    """Keeps its content over restarts."""


class VideoDevice(Struct):
    """A graphics card."""

    type: str | None = None
    """Kind of the card, such as virtio or vga."""


class Diag288Watchdog(Struct):
    """The watchdog of s390x."""

    action: Literal["poweroff", "reset", "shutdown"] | None = None
    """What happens when it is not fed."""


class I6300ESBWatchdog(Struct):
    """The Intel 6300ESB watchdog."""

    action: Literal["poweroff", "reset", "shutdown"] | None = None
    """What happens when it is not fed: reset (when absent), poweroff or shutdown."""


class Watchdog(Struct):
    """A watchdog; one of the kinds."""

    name: str
    """Name of the device."""
    diag288: Diag288Watchdog | None = None
    """The one of s390x."""
    i6300esb: I6300ESBWatchdog | None = None
    """The Intel 6300ESB, which Linux and Windows know."""


class Devices(Struct):
    """Everything that is plugged into the machine."""

    autoattachGraphicsDevice: bool | None = None
    """A graphics card with a VNC screen; on when absent."""
    autoattachInputDevice: bool | None = None
    """A tablet, so that the pointer of the screen fits; off when absent."""
    autoattachMemBalloon: bool | None = None
    """A memory balloon, by which the host learns how memory is used; on when absent."""
    autoattachPodInterface: bool | None = None
    """Joins the pod's network when no network is named; on when absent."""
    autoattachSerialConsole: bool | None = None
    """A serial console; on when absent."""
    autoattachVSOCK: bool | None = None
    """A socket between host and guest that needs no network; off when absent."""
    blockMultiQueue: bool | None = None
    """One request queue per CPU for virtio disks."""
    clientPassthrough: ClientPassthroughDevices | None = None
    """USB devices that a client redirects to the guest."""
    disableHotplug: bool | None = None
    """Nothing will be plugged in while the guest runs, so no free slots are kept."""
    disks: Annotated[list[Disk], BY_NAME] | None = None
    """Disks and CD-ROMs. A volume that no disk names becomes a disk too."""
    downwardMetrics: DownwardMetrics | None = None
    """A device by which the guest reads the host's metrics."""
    filesystems: list[Filesystem] | None = None
    """Volumes that the guest mounts as file systems instead of disks."""
    gpus: list[GPU] | None = None
    """GPUs or vGPUs that are passed through to the guest."""
    hostDevices: list[HostDevice] | None = None
    """Host devices that are passed through to the guest."""
    inputs: list[Input] | None = None
    """Pointing devices."""
    interfaces: Annotated[list[Interface], BY_NAME] | None = None
    """Network cards; each joins the network of the same name."""
    logSerialConsole: bool | None = None
    """Copies the serial console to the log of the pod; on when absent."""
    networkInterfaceMultiqueue: bool | None = None
    """One queue per CPU for virtio network cards."""
    panicDevices: list[PanicDevice] | None = None
    """Devices through which the guest reports a crash."""
    rng: Rng | None = None
    """Random numbers from the host."""
    sound: SoundDevice | None = None
    """A sound card."""
    tpm: TPMDevice | None = None
    """A trusted platform module."""
    useVirtioTransitional: bool | None = None
    """virtio devices in the form that guests from before virtio 1.0 know."""
    video: VideoDevice | None = None
    """Kind of graphics card."""
    watchdog: Watchdog | None = None
    """A watchdog that acts when the guest no longer feeds it."""
