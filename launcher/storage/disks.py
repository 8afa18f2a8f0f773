"""Finds, checks and creates the file or device of each volume."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from api.k8s.meta import quantity_bytes
from api.kubevirt.vmi import VirtualMachineInstance
from api.kubevirt.volumes import Volume
from launcher.domain.facts import DiskFacts, InvalidVmi
from launcher.paths import Paths
from launcher.storage import claims, iso_images, qcow2
from launcher.storage.untrusted_files import Missing, open_regular, resolve

SECTOR = 512
_MIB = 1 << 20
_LISTED = 5
_OTHER_FORMATS = {
    b"KDMV": "a VMDK image", b"COWD": "a VMDK image", b"# Di": "a VMDK descriptor", b"vhdx": "a VHDX image",
    b"cone": "a VHD image", b"<<< ": "a VDI image", b"QED\0": "a QED image", b"\x1f\x8b": "compressed by gzip",
    b"\xfd7zX": "compressed by xz", b"\x28\xb5\x2f\xfd": "compressed by zstd", b"BZh": "compressed by bzip2",
    b"PK\x03\x04": "a ZIP archive", b"LUKS": "encrypted (LUKS)",
}  # fmt: skip


def find_disks(vmi: VirtualMachineInstance, paths: Paths) -> dict[str, DiskFacts]:
    """The disk of every used volume, by name. Raises InvalidVmi, Missing, OSError."""
    used = {disk.name for disk in vmi.spec.domain.devices.disks or []}
    found = {}
    for index, volume in enumerate(vmi.spec.volumes or []):
        if volume.name in used:
            found[volume.name] = _find(vmi, volume, f"spec.volumes[{index}]", paths)
    return found


def _find(vmi: VirtualMachineInstance, volume: Volume, path: str, paths: Paths) -> DiskFacts:
    for source, find in _FINDERS.items():
        if getattr(volume, source) is not None:
            return find(vmi, volume, paths)
    sources = [name for name in volume.__struct_fields__ if name != "name" and getattr(volume, name) is not None]
    raise InvalidVmi(f"{path}: a disk cannot use a volume of type {(sources or ['none'])[0]}")


# -- images


def kernel_boot(vmi: VirtualMachineInstance, paths: Paths) -> tuple[str | None, str | None]:
    """The paths of kernel and initrd of spec.domain.firmware.kernelBoot. Raises Missing."""
    firmware = vmi.spec.domain.firmware
    container = firmware.kernelBoot.container if firmware and firmware.kernelBoot else None
    if container is None:
        return None, None
    root = Path(paths.images, "kernel-boot")
    found = []
    for path in (container.kernelPath, container.initrdPath):
        what = f"spec.domain.firmware.kernelBoot: the image {container.image}"
        found.append(str(_file_in_image(root, path, what)) if path else None)
    return found[0], found[1]


def container_disk(_: VirtualMachineInstance, volume: Volume, paths: Paths) -> DiskFacts:
    """A qcow2 overlay on the disk in the image at /images/<volume>."""
    source = volume.containerDisk
    assert source is not None
    what = f"volume {volume.name}: the image {source.image}"
    root = Path(paths.images, volume.name)
    if not root.is_dir():
        raise Missing(f"volume {volume.name}: the image {source.image} is not mounted at /images/{volume.name}")
    file = _file_in_image(root, source.path or _only_disk(root, what), what)
    shown = f"/{file.relative_to(root)}"
    kind, size = _probe(file, f"{what}: {shown}")
    overlay = Path(paths.disks, f"{volume.name}.qcow2")
    overlay.unlink(missing_ok=True)
    qcow2.create_overlay(overlay, file, kind, size)
    return DiskFacts(
        volume.name, str(overlay), "qcow2", size=size, ephemeral=True, backing=str(file), backing_format=kind
    )


def _only_disk(root: Path, what: str) -> str:
    """Path of the only file under /disk. Raises Missing."""
    try:
        folder = resolve(root, "disk")
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError:
        raise Missing(f"{what} has no directory /disk: not a container disk, or set path to the disk file") from None
    names = [name for name in names if not resolve_quietly(root, f"disk/{name}", Path.is_dir)]
    if not names:
        raise Missing(f"{what} has no file under /disk")
    if len(names) > 1:
        listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
        raise Missing(f"{what} has {len(names)} files under /disk: {listed}; set path to one of them")
    return f"disk/{names[0]}"


def resolve_quietly(root: Path, path: str, test: Callable[[Path], bool]) -> bool:
    """Whether `path` can be resolved and satisfies `test`."""
    try:
        return test(resolve(root, path))
    except OSError:
        return False


def _file_in_image(root: Path, path: str, what: str) -> Path:
    shown = f"/{path.lstrip('/')}"
    try:
        file = resolve(root, path)
        os.close(open_regular(file))
    except FileNotFoundError:
        raise Missing(f"{what} has no file {shown}") from None
    except (OSError, ValueError) as error:
        raise Missing(f"{what}: {shown} cannot be used: {getattr(error, 'strerror', None) or error}") from None
    return file


def _probe(file: Path, what: str) -> tuple[str, int]:
    """Format and size, by magic number: qcow2 or raw. QEMU must not probe: a guest could write any header."""
    try:
        with os.fdopen(open_regular(file), "rb") as opened:
            start = opened.read(8)
            opened.seek(0)
            if start.startswith(qcow2.MAGIC):
                return "qcow2", qcow2.virtual_size(opened)
            size = opened.seek(0, os.SEEK_END)
    except (OSError, ValueError, qcow2.NoImage) as error:
        raise Missing(f"{what} is not a disk: {getattr(error, 'strerror', None) or error}") from None
    other = next((kind for magic, kind in _OTHER_FORMATS.items() if start.startswith(magic)), None)
    if other:
        raise Missing(f"{what} is not a usable disk: it is {other}; only qcow2 and raw are supported")
    if size == 0:
        raise Missing(f"{what} is not a disk: it is empty")
    if size % SECTOR:
        raise Missing(f"{what} is not a disk: neither a qcow2 image nor a multiple of {SECTOR} bytes, but {size} bytes")
    return "raw", size


# -- volumes


def claim(vmi: VirtualMachineInstance, volume: Volume, paths: Paths) -> DiskFacts:
    """A PersistentVolumeClaim: the device /dev/volumes/<volume>, or disk.img in the file system /volumes/<volume>."""
    source = volume.persistentVolumeClaim
    assert source is not None
    read_only = bool(source.readOnly)
    device = Path(paths.block_volumes, volume.name)
    if device.is_block_device():
        return _block(volume.name, device, read_only, source.claimName)
    folder = Path(paths.volumes, volume.name)
    if not folder.is_dir():
        raise Missing(f"volume {volume.name}: claim {source.claimName} is mounted neither at {folder} nor at {device}")
    image = folder / "disk.img"
    what = f"volume {volume.name}: disk.img of claim {source.claimName}"
    try:
        if not read_only and not os.path.lexists(image):
            _create_sparse(image, _claim_size(vmi, volume.name, folder, what))
        with os.fdopen(open_regular(image, os.O_RDONLY if read_only else os.O_RDWR), "rb") as file:
            claims.checked(file, what)
            size = file.seek(0, os.SEEK_END)
            if size and not read_only:
                wanted = _claim_size(vmi, volume.name, folder, what, os.fstat(file.fileno()).st_blocks * SECTOR)
                if wanted > size:
                    os.truncate(file.fileno(), wanted)
                    size = wanted
    except FileNotFoundError:
        raise Missing(f"{what} does not exist, and the claim is read-only") from None
    except (OSError, ValueError) as error:
        raise Missing(f"{what} cannot be used: {getattr(error, 'strerror', None) or error}") from None
    if size == 0:
        raise Missing(f"{what} is empty")
    claims.whole_sectors(size, what)
    return DiskFacts(volume.name, str(image), size=size, readonly=read_only, direct=_takes_direct(image))


def _block(name: str, device: Path, read_only: bool, claim_name: str) -> DiskFacts:
    try:
        with device.open("rb") as file:
            claims.checked(file, f"volume {name}: the device of claim {claim_name}")
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise Missing(f"volume {name}: {device} cannot be opened: {error.strerror}") from None
    return DiskFacts(name, str(device), block=True, size=size, readonly=read_only, direct=True)


def _claim_size(vmi: VirtualMachineInstance, name: str, folder: Path, what: str, used: int = 0) -> int:
    """The claim's capacity, limited to what the file system can hold with 5 % to spare. `used`: bytes of it that the
    disk occupies already."""
    system = os.statvfs(folder)
    room = (system.f_bavail * system.f_frsize + used) * 95 // 100
    capacity = room
    for status in (vmi.status.volumeStatus if vmi.status else None) or []:
        info = status.persistentVolumeClaimInfo
        # A claim that was just bound may have requests but no capacity yet. Free space alone is no measure: on a file
        # server it is shared by all volumes.
        amounts = (info.capacity or info.requests or {}) if info else {}
        if status.name == name and "storage" in amounts:
            capacity = quantity_bytes(amounts["storage"])
    size = min(capacity, room) // _MIB * _MIB
    if size <= 0 and not used:
        raise Missing(f"{what} does not exist, and there is not enough space to create it: {room} bytes")
    return size


def grown(vmi: VirtualMachineInstance, known: Mapping[str, int], paths: Paths) -> dict[str, int]:
    """The sizes that disks on claims can be grown to, if larger than `known` (bytes by volume). Changes nothing: QEMU
    grows a disk in use. Raises Missing, OSError."""
    found = {}
    for volume in vmi.spec.volumes or []:
        source = volume.persistentVolumeClaim
        if source is None or source.readOnly or volume.name not in known:
            continue
        device, folder = Path(paths.block_volumes, volume.name), Path(paths.volumes, volume.name)
        if device.is_block_device():
            size = _block(volume.name, device, False, source.claimName).size
        else:
            what = f"volume {volume.name}: disk.img of claim {source.claimName}"
            size = _claim_size(vmi, volume.name, folder, what, (folder / "disk.img").lstat().st_blocks * SECTOR)
        if size > known[volume.name]:
            found[volume.name] = size
    return found


def _create_sparse(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _takes_direct(path: Path) -> bool:
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW))
        return True
    return False


def empty_disk(_: VirtualMachineInstance, volume: Volume, paths: Paths) -> DiskFacts:
    """A sparse file that is deleted with the pod."""
    assert volume.emptyDisk is not None
    size = -(-quantity_bytes(volume.emptyDisk.capacity) // SECTOR) * SECTOR
    path = Path(paths.disks, f"{volume.name}.img")
    path.unlink(missing_ok=True)
    _create_sparse(path, size)
    return DiskFacts(volume.name, str(path), size=size, ephemeral=True)


# -- media


def _iso(vmi: VirtualMachineInstance, volume: Volume, paths: Paths) -> DiskFacts:
    path = Path(paths.media, f"{volume.name}.iso")
    path.unlink(missing_ok=True)
    iso_images.create(path, vmi, volume, paths)
    # Read-only even if the VMI declares a disk: writes would be lost.
    return DiskFacts(volume.name, str(path), size=path.stat().st_size, readonly=True, ephemeral=True)


_FINDERS: dict[str, Callable[[VirtualMachineInstance, Volume, Paths], DiskFacts]] = {
    "containerDisk": container_disk,
    "persistentVolumeClaim": claim,
    "emptyDisk": empty_disk,
    "cloudInitNoCloud": _iso,
    "cloudInitConfigDrive": _iso,
    "configMap": _iso,
    "secret": _iso,
}
