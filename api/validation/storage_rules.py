"""Rules for disks and volumes."""

from collections.abc import Iterator

from api import names
from api.errors import Fault
from api.kubevirt.devices import Disk, DiskTarget
from api.kubevirt.vmi import VirtualMachineInstanceSpec
from api.kubevirt.volumes import CloudInitConfigDriveSource, CloudInitNoCloudSource, Volume
from api.validation import syntax
from api.validation.domain_rules import check, quantity

# KubeVirt allows 2 KiB inline; the technical limit is etcd's 1.5 MiB for the whole object.
MAX_CLOUD_INIT_BYTES = 64 * 1024
MAX_DISKS = 256
_WRITABLE = "a disk on the default bus sata cannot be read-only: use bus virtio or scsi, or cdrom"
_SOURCES = tuple(field for field in Volume.__struct_fields__ if field != "name")
_TARGETS = ("disk", "cdrom", "lun")


def storage_faults(spec: VirtualMachineInstanceSpec, path: str) -> Iterator[Fault]:
    """Faults of disks and volumes. A volume without a disk is valid: it gets a disk by default."""
    disks, volumes = spec.domain.devices.disks or [], spec.volumes or []
    disks_path, volumes_path = f"{path}.domain.devices.disks", f"{path}.volumes"
    if max(len(disks), len(volumes)) > MAX_DISKS:
        yield Fault(disks_path, names.FAULT_INVALID, f"must have at most {MAX_DISKS} disks")
        return
    yield from duplicates([disk.name for disk in disks], disks_path, "disk")
    yield from duplicates([volume.name for volume in volumes], volumes_path, "volume")
    known = {volume.name for volume in volumes}
    for index, disk in enumerate(disks):
        here = f"{disks_path}[{index}]"
        yield from _disk(disk, here)
        if disk.name not in known:
            yield Fault(
                f"{here}.name", names.FAULT_INVALID, f"disk {disk.name[:63]!r} has no volume with the same name"
            )
    for index, volume in enumerate(volumes):
        yield from _volume(volume, f"{volumes_path}[{index}]")
    yield from _locked(disks, volumes, path)
    yield from _shared_claims(volumes, volumes_path)
    clouds = [volume for volume in volumes if volume.cloudInitNoCloud or volume.cloudInitConfigDrive]
    if len(clouds) > 1:
        yield Fault(
            volumes_path,
            names.FAULT_INVALID,
            f"only one cloud-init volume is supported, not {', '.join(repr(v.name[:63]) for v in clouds)}",
        )


def duplicates(entries: list[str], path: str, what: str) -> Iterator[Fault]:
    """A Fault for every duplicate name."""
    seen: set[str] = set()
    for index, name in enumerate(entries):
        if name in seen:
            yield Fault(f"{path}[{index}].name", names.FAULT_DUPLICATE, f"duplicate {what} name {name[:63]!r}")
        seen.add(name)


def _disk(disk: Disk, path: str) -> Iterator[Fault]:
    yield from check(syntax.dns_label(disk.name), f"{path}.name")
    targets = [target for target in _TARGETS if getattr(disk, target) is not None]
    if len(targets) > 1:
        yield Fault(path, names.FAULT_INVALID, f"{' and '.join(targets)} are mutually exclusive")
    if disk.serial is not None:
        yield from check(syntax.word(disk.serial), f"{path}.serial")
    if disk.cdrom and disk.cdrom.bus == "virtio":
        yield Fault(
            f"{path}.cdrom.bus", names.FAULT_NOT_SUPPORTED, "virtio is not supported for a CD-ROM: use sata or scsi"
        )
    if disk.cdrom and disk.cdrom.readonly is False:
        yield Fault(f"{path}.cdrom.readonly", names.FAULT_INVALID, "a CD-ROM must be read-only")
    if disk.disk and disk.disk.pciAddress is not None:
        yield from check(syntax.pci_address(disk.disk.pciAddress), f"{path}.disk.pciAddress")
        if disk.disk.bus not in (None, "virtio"):
            yield Fault(
                f"{path}.disk.pciAddress",
                names.FAULT_INVALID,
                "requires bus virtio: only a virtio disk is a PCI device",
            )
    if disk.io == "native" and disk.cache in ("writethrough", "writeback"):
        yield Fault(f"{path}.io", names.FAULT_INVALID, f"native requires cache none, not {disk.cache}")


def _locked(disks: list[Disk], volumes: list[Volume], path: str) -> Iterator[Fault]:
    """Read-only disks on SATA, the default bus, which libvirt does not support."""
    claims = {volume.name for volume in volumes if (claim := volume.persistentVolumeClaim) and claim.readOnly}
    for index, disk in enumerate(disks):
        target = disk.disk or DiskTarget()
        if disk.cdrom or disk.lun or target.bus not in (None, "sata"):
            claims.discard(disk.name)
        elif target.readonly or disk.name in claims:
            claims.discard(disk.name)
            yield Fault(f"{path}.domain.devices.disks[{index}].disk.bus", names.FAULT_INVALID, _WRITABLE)
    for index, volume in enumerate(volumes):
        if volume.name in claims:
            yield Fault(f"{path}.volumes[{index}].persistentVolumeClaim.readOnly", names.FAULT_INVALID, _WRITABLE)


def _volume(volume: Volume, path: str) -> Iterator[Fault]:
    yield from check(syntax.dns_label(volume.name), f"{path}.name")
    sources = [source for source in _SOURCES if getattr(volume, source) is not None]
    if len(sources) > 1:
        yield Fault(path, names.FAULT_INVALID, f"only one source is allowed per volume, not {' and '.join(sources)}")
    if not sources:
        yield Fault(path, names.FAULT_REQUIRED, f"required: volume {volume.name[:63]!r} has no source")
    yield from _image_volume(volume, path)
    yield from _named_volume(volume, path)
    if volume.emptyDisk:
        faults: list[Fault] = []
        capacity = quantity(volume.emptyDisk.capacity, f"{path}.emptyDisk.capacity", faults)
        if capacity is not None and capacity < 512:
            faults.append(Fault(f"{path}.emptyDisk.capacity", names.FAULT_INVALID, "must be at least one sector"))
        yield from faults
    if volume.cloudInitNoCloud:
        yield from _cloud_init(volume.cloudInitNoCloud, f"{path}.cloudInitNoCloud")
    if volume.cloudInitConfigDrive:
        yield from _cloud_init(volume.cloudInitConfigDrive, f"{path}.cloudInitConfigDrive")
        yield from _network_json(volume.cloudInitConfigDrive, f"{path}.cloudInitConfigDrive")


def _image_volume(volume: Volume, path: str) -> Iterator[Fault]:
    disk = volume.containerDisk
    if disk is None:
        return
    yield from check(syntax.image(disk.image), f"{path}.containerDisk.image")
    if disk.path is not None:
        yield from check(syntax.image_path(disk.path), f"{path}.containerDisk.path")
    if disk.imagePullSecret is not None:
        yield from check(syntax.object_name(disk.imagePullSecret), f"{path}.containerDisk.imagePullSecret")


def _named_volume(volume: Volume, path: str) -> Iterator[Fault]:
    """Volumes that reference another object."""
    if volume.persistentVolumeClaim:
        claim = volume.persistentVolumeClaim.claimName
        yield from check(syntax.object_name(claim), f"{path}.persistentVolumeClaim.claimName")
    if volume.configMap:
        yield from _required_name(volume.configMap.name, f"{path}.configMap.name")
        yield from _volume_label(volume.configMap.volumeLabel, f"{path}.configMap.volumeLabel")
    if volume.secret:
        yield from _required_name(volume.secret.secretName, f"{path}.secret.secretName")
        yield from _volume_label(volume.secret.volumeLabel, f"{path}.secret.volumeLabel")


def _required_name(name: str | None, path: str) -> Iterator[Fault]:
    if not name:
        yield Fault(path, names.FAULT_REQUIRED, "this field is required")
    else:
        yield from check(syntax.object_name(name), path)


def _volume_label(label: str | None, path: str) -> Iterator[Fault]:
    if label is not None:
        # An ISO 9660 volume label has 32 characters.
        yield from check(syntax.word(label, 32), path)


def _shared_claims(volumes: list[Volume], path: str) -> Iterator[Fault]:
    seen: dict[str, str] = {}
    for index, volume in enumerate(volumes):
        claim = volume.persistentVolumeClaim.claimName if volume.persistentVolumeClaim else None
        if claim and claim in seen:
            yield Fault(
                f"{path}[{index}].persistentVolumeClaim.claimName",
                names.FAULT_DUPLICATE,
                f"claim {claim[:80]!r} is already used by volume {seen[claim][:63]!r}",
            )
        elif claim:
            seen[claim] = volume.name


def _cloud_init(source: CloudInitNoCloudSource | CloudInitConfigDriveSource, path: str) -> Iterator[Fault]:
    users = _cloud_data(source.userData, source.userDataBase64, source.secretRef is not None)
    nets = _cloud_data(source.networkData, source.networkDataBase64, source.networkDataSecretRef is not None)
    if len(users) > 1:
        yield Fault(path, names.FAULT_INVALID, "userData, userDataBase64 and secretRef are mutually exclusive")
    if len(nets) > 1:
        yield Fault(
            path, names.FAULT_INVALID, "networkData, networkDataBase64 and networkDataSecretRef are mutually exclusive"
        )
    if not users and not nets:
        yield Fault(path, names.FAULT_REQUIRED, "required: set userData, userDataBase64, secretRef or networkData")
    yield from _inline(source.userData, f"{path}.userData")
    yield from _inline(source.networkData, f"{path}.networkData")
    yield from _inline64(source.userDataBase64, f"{path}.userDataBase64")
    yield from _inline64(source.networkDataBase64, f"{path}.networkDataBase64")
    if source.secretRef is not None:
        yield from _required_name(source.secretRef.name, f"{path}.secretRef.name")
    if source.networkDataSecretRef is not None:
        yield from _required_name(source.networkDataSecretRef.name, f"{path}.networkDataSecretRef.name")


def _network_json(source: CloudInitConfigDriveSource, path: str) -> Iterator[Fault]:
    """Network data of a config drive is openstack/latest/network_data.json, which must be JSON."""
    if source.networkData and not syntax.is_json_object(source.networkData.encode("utf-8", "surrogatepass")):
        yield Fault(f"{path}.networkData", names.FAULT_INVALID, syntax.NETWORK_DATA)
    encoded = syntax.from_base64(source.networkDataBase64 or "")
    if encoded and not syntax.is_json_object(encoded):
        yield Fault(f"{path}.networkDataBase64", names.FAULT_INVALID, syntax.NETWORK_DATA)


def _cloud_data(plain: str | None, encoded: str | None, secret: bool) -> list[bool]:
    return [present for present in (bool(plain), bool(encoded), secret) if present]


def _inline(text: str | None, path: str) -> Iterator[Fault]:
    if text is not None and len(text.encode("utf-8", "surrogatepass")) > MAX_CLOUD_INIT_BYTES:
        yield _too_long(path)


def _inline64(text: str | None, path: str) -> Iterator[Fault]:
    if text is None:
        return
    if len(text) > 2 * MAX_CLOUD_INIT_BYTES:  # allows for base64's overhead of a third and line ends
        yield _too_long(path)
        return
    size = syntax.base64_size(text)
    if size is None:
        yield Fault(path, names.FAULT_INVALID, "must be base64")
    elif size > MAX_CLOUD_INIT_BYTES:
        yield _too_long(path)


def _too_long(path: str) -> Fault:
    return Fault(
        path, names.FAULT_INVALID, f"must be at most {MAX_CLOUD_INIT_BYTES} bytes: put larger data into a Secret"
    )
