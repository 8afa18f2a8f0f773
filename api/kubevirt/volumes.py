"""Where the content of disks comes from."""

from typing import Literal

from api.k8s.meta import Quantity, Struct
from api.k8s.podspec import DownwardAPIVolumeFile, LocalObjectReference


class UtilityVolume(Struct):
    """A claim that is given to the launcher, not to the guest."""

    claimName: str
    """Name of the claim."""
    name: str
    """Name of the volume."""
    readOnly: bool | None = None
    """It is not written."""
    type: str | None = None
    """What it is for."""


class CloudInitConfigDriveSource(Struct):
    """Cloud-init data on a disk labelled config-2."""

    networkData: str | None = None
    """Network configuration, as it is."""
    networkDataBase64: str | None = None
    """Network configuration, base64."""
    networkDataSecretRef: LocalObjectReference | None = None
    """Secret with the network configuration under the key networkData."""
    secretRef: LocalObjectReference | None = None
    """Secret with the user data under the key userData."""
    userData: str | None = None
    """User data, as it is; at most 64 KiB."""
    userDataBase64: str | None = None
    """User data, base64; at most 64 KiB decoded."""


class CloudInitNoCloudSource(Struct):
    """Cloud-init data on a disk labelled cidata."""

    networkData: str | None = None
    """Network configuration, as it is."""
    networkDataBase64: str | None = None
    """Network configuration, base64."""
    networkDataSecretRef: LocalObjectReference | None = None
    """Secret with the network configuration under the key networkData."""
    secretRef: LocalObjectReference | None = None
    """Secret with the user data under the key userData."""
    userData: str | None = None
    """User data, as it is; at most 64 KiB."""
    userDataBase64: str | None = None
    """User data, base64; at most 64 KiB decoded."""


class ConfigMapVolumeSource(Struct):
    """A ConfigMap."""

    name: str | None = None
    """Name of the ConfigMap."""
    optional: bool | None = None
    """The VM starts without it too."""
    volumeLabel: str | None = None
    """Label of the file system on the disk."""


class ContainerDiskSource(Struct):
    """A disk image out of a container image."""

    image: str
    """Reference of the container image."""
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled."""
    imagePullSecret: str | None = None
    """Secret with the registry's credentials, in the same namespace."""
    path: str | None = None
    """Absolute path of the disk inside the image; the file below /disk when absent."""


class ContainerPathVolumeSource(Struct):
    """A path of the launcher's container."""

    path: str
    """Absolute path."""
    readOnly: bool | None = None
    """The guest cannot write."""


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
    """Metrics of the host as a disk."""


class EmptyDiskSource(Struct):
    """An empty disk that lives as long as the VMI."""

    capacity: Quantity
    """Size."""


class PersistentVolumeClaimVolumeSource(Struct):
    """A claim in the same namespace."""

    claimName: str
    """Name of the claim."""
    hotpluggable: bool | None = None
    """Can be unplugged while the guest runs."""
    readOnly: bool | None = None
    """The guest cannot write."""


class EphemeralVolumeSource(Struct):
    """A claim with a copy-on-write overlay that is discarded."""

    persistentVolumeClaim: PersistentVolumeClaimVolumeSource | None = None
    """The claim that is read."""


class HostDisk(Struct):
    """A file of the node."""

    path: str
    """Absolute path of the file."""
    type: Literal["Disk", "DiskOrCreate"]
    """Disk uses an existing file; DiskOrCreate creates it if missing."""
    capacity: Quantity | None = None
    """Size of a created file."""
    shared: bool | None = None
    """Several VMs may use the file at once."""


class MemoryDumpVolumeSource(Struct):
    """A claim that takes dumps of the guest's memory."""

    claimName: str
    """Name of the claim."""
    hotpluggable: bool | None = None
    """Can be unplugged while the guest runs."""
    readOnly: bool | None = None
    """The guest cannot write."""


class SecretVolumeSource(Struct):
    """A Secret."""

    optional: bool | None = None
    """The VM starts without it too."""
    secretName: str | None = None
    """Name of the Secret."""
    volumeLabel: str | None = None
    """Label of the file system on the disk."""


class ServiceAccountVolumeSource(Struct):
    """A service account."""

    serviceAccountName: str | None = None
    """Name of the service account."""


class SysprepSource(Struct):
    """Answer files for Windows setup; one of the two."""

    configMap: LocalObjectReference | None = None
    """ConfigMap with the files."""
    secret: LocalObjectReference | None = None
    """Secret with the files."""


class Volume(Struct):
    """The content of a disk; one source."""

    name: str
    """Name by which a disk takes this content."""
    cloudInitConfigDrive: CloudInitConfigDriveSource | None = None
    """Cloud-init data in the form of OpenStack's config drive."""
    cloudInitNoCloud: CloudInitNoCloudSource | None = None
    """Cloud-init data in the NoCloud form."""
    configMap: ConfigMapVolumeSource | None = None
    """The files of a ConfigMap, as a read-only disk."""
    containerDisk: ContainerDiskSource | None = None
    """A disk image out of a container image; changes are lost when the VM stops."""
    containerPath: ContainerPathVolumeSource | None = None
    """A path of the launcher's container."""
    dataVolume: DataVolumeSource | None = None
    """The claim that a DataVolume fills."""
    downwardAPI: DownwardAPIVolumeSource | None = None
    """Fields of the pod as files."""
    downwardMetrics: DownwardMetricsVolumeSource | None = None
    """Metrics of the host as a disk."""
    emptyDisk: EmptyDiskSource | None = None
    """An empty disk that lives as long as the VMI."""
    ephemeral: EphemeralVolumeSource | None = None
    """A claim that is only read; changes are lost when the VM stops."""
    hostDisk: HostDisk | None = None
    """A file of the node."""
    memoryDump: MemoryDumpVolumeSource | None = None
    """A claim that takes dumps of the guest's memory."""
    persistentVolumeClaim: PersistentVolumeClaimVolumeSource | None = None
    """A claim: a disk that stays."""
    secret: SecretVolumeSource | None = None
    """The files of a Secret, as a read-only disk."""
    serviceAccount: ServiceAccountVolumeSource | None = None
    """The token of a service account, as a read-only disk."""
    sysprep: SysprepSource | None = None
    """Answer files for Windows setup."""


class HotplugVolumeSource(Struct):
    """The content of a disk that is plugged in; one source."""

    dataVolume: DataVolumeSource | None = None
    """The claim that a DataVolume fills."""
    persistentVolumeClaim: PersistentVolumeClaimVolumeSource | None = None
    """A claim."""
