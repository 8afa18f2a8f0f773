"""The part of a DataVolume (cdi.kubevirt.io/v1beta1) used in a VM's dataVolumeTemplates."""

from typing import Literal

from api.k8s.meta import Struct
from api.k8s.podspec import (
    LabelSelector,
    PersistentVolumeClaimSpec,
    TypedLocalObjectReference,
    TypedObjectReference,
    VolumeResourceRequirements,
)


class DataVolumeCheckpoint(Struct):
    """A checkpoint of a multi-stage import."""

    current: str
    """Snapshot of this checkpoint."""
    previous: str
    """Snapshot of the previous checkpoint."""


class DataVolumeBlankImage(Struct):
    """An empty disk."""


class DataVolumeSourceGCS(Struct):
    """An object in Google Cloud Storage."""

    url: str
    """The address."""
    secretRef: str | None = None
    """Secret with credentials."""


class DataVolumeSourceHTTP(Struct):
    """A file on an HTTP server."""

    url: str
    """The address."""
    certConfigMap: str | None = None
    """ConfigMap with the CA certificate of the server."""
    extraHeaders: list[str] | None = None
    """Headers to send."""
    secretExtraHeaders: list[str] | None = None
    """Secrets with headers to send."""
    secretRef: str | None = None
    """Secret with user name and password."""


class DataVolumeSourceImageIO(Struct):
    """A disk of oVirt."""

    diskId: str
    """The disk."""
    url: str
    """Address of the engine."""
    certConfigMap: str | None = None
    """ConfigMap with the CA certificate of the server."""
    insecureSkipVerify: bool | None = None
    """Skips verification of the server certificate."""
    secretRef: str | None = None
    """Secret with user name and password."""


class DataVolumeSourcePVC(Struct):
    """Another PersistentVolumeClaim."""

    name: str
    """Its name."""
    namespace: str
    """Its namespace."""


class PlatformOptions(Struct):
    """Platform of an image."""

    architecture: str | None = None
    """Architecture."""


class DataVolumeSourceRegistry(Struct):
    """A container image."""

    certConfigMap: str | None = None
    """ConfigMap with the CA certificate of the server."""
    imageStream: str | None = None
    """Image stream of the image."""
    platform: PlatformOptions | None = None
    """Platform of the image."""
    pullMethod: str | None = None
    """pod: import in a pod; node: pull by the node."""
    secretRef: str | None = None
    """Secret with user name and password."""
    url: str | None = None
    """The address."""


class DataVolumeSourceS3(Struct):
    """An object of S3 storage."""

    url: str
    """The address."""
    certConfigMap: str | None = None
    """ConfigMap with the CA certificate of the server."""
    secretRef: str | None = None
    """Secret with credentials."""


class DataVolumeSourceSnapshot(Struct):
    """A snapshot of a volume."""

    name: str
    """Its name."""
    namespace: str
    """Its namespace."""


class DataVolumeSourceUpload(Struct):
    """An upload by a client."""


class DataVolumeSourceVDDK(Struct):
    """A disk of VMware."""

    backingFile: str | None = None
    """File of the disk."""
    extraArgs: str | None = None
    """ConfigMap with additional arguments."""
    initImageURL: str | None = None
    """Image with the VDDK library."""
    secretRef: str | None = None
    """Secret with user name and password."""
    thumbprint: str | None = None
    """Fingerprint of the server's certificate."""
    url: str | None = None
    """Address of the server."""
    uuid: str | None = None
    """UUID of the VM in VMware."""


class DataVolumeSource(Struct):
    """Content of a claim; exactly one source."""

    blank: DataVolumeBlankImage | None = None
    """An empty disk."""
    gcs: DataVolumeSourceGCS | None = None
    """An object in Google Cloud Storage."""
    http: DataVolumeSourceHTTP | None = None
    """A file on an HTTP server."""
    imageio: DataVolumeSourceImageIO | None = None
    """A disk of oVirt."""
    pvc: DataVolumeSourcePVC | None = None
    """Another PersistentVolumeClaim."""
    registry: DataVolumeSourceRegistry | None = None
    """A container image."""
    s3: DataVolumeSourceS3 | None = None
    """An object of S3 storage."""
    snapshot: DataVolumeSourceSnapshot | None = None
    """A snapshot of a volume."""
    upload: DataVolumeSourceUpload | None = None
    """An upload by a client."""
    vddk: DataVolumeSourceVDDK | None = None
    """A disk of VMware."""


class DataVolumeSourceRef(Struct):
    """A DataSource."""

    kind: str
    """Kind of the source: DataSource."""
    name: str
    """Its name."""
    namespace: str | None = None
    """Its namespace; the same one when absent."""


class StorageSpec(Struct):
    """A claim with defaults from the storage profile."""

    accessModes: list[str] | None = None
    """How nodes may use the volume at the same time."""
    dataSource: TypedLocalObjectReference | None = None
    """Initial content: a snapshot or another claim."""
    dataSourceRef: TypedObjectReference | None = None
    """Like dataSource, for any kind and namespace."""
    resources: VolumeResourceRequirements | None = None
    """Size."""
    selector: LabelSelector | None = None
    """Volumes that may be bound."""
    storageClassName: str | None = None
    """Class of storage."""
    volumeMode: Literal["Block", "Filesystem", "FromStorageProfile"] | None = None
    """Block or Filesystem."""
    volumeName: str | None = None
    """The volume to bind to, by name."""


class DataVolumeSpec(Struct):
    """A claim and its content."""

    checkpoints: list[DataVolumeCheckpoint] | None = None
    """Checkpoints of a multi-stage import."""
    contentType: str | None = None
    """kubevirt for a disk image, archive for a tar archive of files."""
    finalCheckpoint: bool | None = None
    """Whether the checkpoints include the final one."""
    preallocation: bool | None = None
    """Preallocates the space."""
    priorityClassName: str | None = None
    """Priority class of the importer pod."""
    pvc: PersistentVolumeClaimSpec | None = None
    """The PersistentVolumeClaim."""
    source: DataVolumeSource | None = None
    """Source of the content."""
    sourceRef: DataVolumeSourceRef | None = None
    """A DataSource with the content to import."""
    storage: StorageSpec | None = None
    """The claim; absent fields are taken from the storage profile."""
