"""Where the content of disks comes from."""

from typing import Literal

from api.k8s.meta import Quantity, Struct
from api.k8s.podspec import DownwardAPIVolumeFile, LocalObjectReference


class UtilityVolume(Struct):
    """A claim attached to the launcher, not to the guest."""

    claimName: str
    """Name of the claim."""
    name: str
    """Name of the volume."""
    readOnly: bool | None = None
    """Read-only."""
    type: str | None = None
    """Purpose of the volume."""


class CloudInitConfigDriveSource(Struct):
    """Cloud-init data on a disk labelled config-2."""

    networkData: str | None = None
    """Network configuration in plain text."""
    networkDataBase64: str | None = None
    """Network configuration, base64."""
    networkDataSecretRef: LocalObjectReference | None = None
    """Secret with the network configuration under the key networkData."""
    secretRef: LocalObjectReference | None = None
    """Secret with the user data under the key userData."""
    userData: str | None = None
    """User data in plain text; at most 64 KiB."""
    userDataBase64: str | None = None
    """User data, base64; at most 64 KiB decoded."""


class CloudInitNoCloudSource(Struct):
    """Cloud-init data on a disk labelled cidata."""

    networkData: str | None = None
    """Network configuration in plain text."""
    networkDataBase64: str | None = None
    """Network configuration, base64."""
    networkDataSecretRef: LocalObjectReference | None = None
    """Secret with the network configuration under the key networkData."""
    secretRef: LocalObjectReference | None = None
    """Secret with the user data under the key userData."""
    userData: str | None = None
    """User data in plain text; at most 64 KiB."""
    userDataBase64: str | None = None
    """User data, base64; at most 64 KiB decoded."""


class ConfigMapVolumeSource(Struct):
    """A ConfigMap."""

    name: str | None = None
    """Name of the ConfigMap."""
    optional: bool | None = None
    """The VM also starts if it does not exist."""
    volumeLabel: str | None = None
    """Label of the file system on the disk."""


class ContainerDiskSource(Struct):
    """A disk image in a container image."""

    image: str
    """Reference of the container image."""
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled."""
    imagePullSecret: str | None = None
    """Secret with the registry's credentials, in the same namespace."""
    path: str | None = None
    """Absolute path of the disk inside the image; the file below /disk when absent."""


class ContainerPathVolumeSource(Struct):
    """A path in the launcher container."""

    path: str
    """Absolute path."""
    readOnly: bool | None = None
    """Read-only."""


class DataVolumeSource(Struct):
    """The claim that a DataVolume fills."""

    name: str
    """Name of the DataVolume."""
    hotpluggable: bool | None = None
    """Can be unplugged while the guest runs."""


class DownwardAPIVolumeSource(Struct):
    """Fields of the pod as files."""

    fields: list[DownwardAPIVolumeFile] | None = None
    """The files."""
    volumeLabel: str | None = None
    """Label of the file system on the disk."""


class DownwardMetricsVolumeSource(Struct):
    """Host metrics as a disk."""


class EmptyDiskSource(Struct):
    """An empty disk with the lifetime of the VMI."""

    capacity: Quantity
    """Size."""


class PersistentVolumeClaimVolumeSource(Struct):
    """A claim in the same namespace."""

    claimName: str
    """Name of the claim."""
    hotpluggable: bool | None = None
    """Can be unplugged while the guest runs."""
    readOnly: bool | None = None
    """Read-only."""


class EphemeralVolumeSource(Struct):
    """A claim with a copy-on-write overlay that is discarded."""

    persistentVolumeClaim: PersistentVolumeClaimVolumeSource | None = None
    """The backing claim."""


class HostDisk(Struct):
    """A file of the node."""

    path: str
    """Absolute path of the file."""
    type: Literal["Disk", "DiskOrCreate"]
    """Disk uses an existing file; DiskOrCreate creates it if missing."""
    capacity: Quantity | None = None
    """Size of a created file."""
    shared: bool | None = None
    """Allows concurrent use by several VMs."""


class MemoryDumpVolumeSource(PersistentVolumeClaimVolumeSource):
    """A claim for memory dumps."""


class SecretVolumeSource(Struct):
    """A Secret."""

    optional: bool | None = None
    """The VM also starts if it does not exist."""
    secretName: str | None = None
    """Name of the Secret."""
    volumeLabel: str | None = None
    """Label of the file system on the disk."""


class ServiceAccountVolumeSource(Struct):
    """A service account."""

    serviceAccountName: str | None = None
    """Name of the service account."""


class SysprepSource(Struct):
    """Answer files for Windows setup: exactly one of configMap and secret."""

    configMap: LocalObjectReference | None = None
    """ConfigMap with the files."""
    secret: LocalObjectReference | None = None
    """Secret with the files."""


class Volume(Struct):
    """A volume; exactly one source."""

    name: str
    """Name referenced by a disk."""
    cloudInitConfigDrive: CloudInitConfigDriveSource | None = None
    """Cloud-init data as OpenStack config drive."""
    cloudInitNoCloud: CloudInitNoCloudSource | None = None
    """Cloud-init data as NoCloud disk."""
    configMap: ConfigMapVolumeSource | None = None
    """The files of a ConfigMap, as a read-only disk."""
    containerDisk: ContainerDiskSource | None = None
    """A disk image in a container image; changes are lost when the VM stops."""
    containerPath: ContainerPathVolumeSource | None = None
    """A path in the launcher container."""
    dataVolume: DataVolumeSource | None = None
    """The claim that a DataVolume fills."""
    downwardAPI: DownwardAPIVolumeSource | None = None
    """Fields of the pod as files."""
    downwardMetrics: DownwardMetricsVolumeSource | None = None
    """Host metrics as a disk."""
    emptyDisk: EmptyDiskSource | None = None
    """An empty disk with the lifetime of the VMI."""
    ephemeral: EphemeralVolumeSource | None = None
    """A read-only claim with an overlay; changes are lost when the VM stops."""
    hostDisk: HostDisk | None = None
    """A file of the node."""
    memoryDump: MemoryDumpVolumeSource | None = None
    """A claim for memory dumps."""
    persistentVolumeClaim: PersistentVolumeClaimVolumeSource | None = None
    """A PersistentVolumeClaim."""
    secret: SecretVolumeSource | None = None
    """The files of a Secret, as a read-only disk."""
    serviceAccount: ServiceAccountVolumeSource | None = None
    """The token of a service account, as a read-only disk."""
    sysprep: SysprepSource | None = None
    """Answer files for Windows setup."""


class HotplugVolumeSource(Struct):
    """Source of a hot-plugged volume; exactly one."""

    dataVolume: DataVolumeSource | None = None
    """The claim that a DataVolume fills."""
    persistentVolumeClaim: PersistentVolumeClaimVolumeSource | None = None
    """A claim."""


def claim_name(volume: Volume) -> str | None:
    """The PersistentVolumeClaim that backs a volume, or None. A DataVolume's claim has the DataVolume's name."""
    if volume.persistentVolumeClaim:
        return volume.persistentVolumeClaim.claimName
    if volume.dataVolume:
        return volume.dataVolume.name
    if volume.ephemeral and volume.ephemeral.persistentVolumeClaim:
        return volume.ephemeral.persistentVolumeClaim.claimName
    return None
