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
    """A stage of an import."""

    current: str
    """Snapshot of this stage."""
    previous: str
    """Snapshot of the stage before."""


class DataVolumeBlankImage(Struct):
    """An empty disk."""


class DataVolumeSourceGCS(Struct):
    """An object of Google's storage."""

    url: str
    """Its address."""
    secretRef: str | None = None
    """Secret with credentials."""


class DataVolumeSourceHTTP(Struct):
    """A file of a web server."""

    url: str
    """Its address."""
    certConfigMap: str | None = None
    """ConfigMap with the authority that signed the server's certificate."""
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
    """ConfigMap with the authority that signed the server's certificate."""
    insecureSkipVerify: bool | None = None
    """Takes any certificate."""
    secretRef: str | None = None
    """Secret with user name and password."""


class DataVolumeSourcePVC(Struct):
    """Another claim."""

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
    """ConfigMap with the authority that signed the server's certificate."""
    imageStream: str | None = None
    """Image stream that names it."""
    platform: PlatformOptions | None = None
    """Platform of the image."""
    pullMethod: str | None = None
    """pod unpacks it in a pod; node lets the node pull it."""
    secretRef: str | None = None
    """Secret with user name and password."""
    url: str | None = None
    """Its address."""


class DataVolumeSourceS3(Struct):
    """An object of S3 storage."""

    url: str
    """Its address."""
    certConfigMap: str | None = None
    """ConfigMap with the authority that signed the server's certificate."""
    secretRef: str | None = None
    """Secret with credentials."""


class DataVolumeSourceSnapshot(Struct):
    """A snapshot of a volume."""

    name: str
    """Its name."""
    namespace: str
    """Its namespace."""


class DataVolumeSourceUpload(Struct):
    """A file that a client sends."""


class DataVolumeSourceVDDK(Struct):
    """A disk of VMware."""

    backingFile: str | None = None
    """File of the disk."""
    extraArgs: str | None = None
    """ConfigMap with further arguments."""
    initImageURL: str | None = None
    """Image with VMware's library."""
    secretRef: str | None = None
    """Secret with user name and password."""
    thumbprint: str | None = None
    """Fingerprint of the server's certificate."""
    url: str | None = None
    """Address of the server."""
    uuid: str | None = None
    """UUID of the machine there."""


class DataVolumeSource(Struct):
    """What a claim is filled with; one of the kinds."""

    blank: DataVolumeBlankImage | None = None
    """Nothing: an empty disk."""
    gcs: DataVolumeSourceGCS | None = None
    """An object of Google's storage."""
    http: DataVolumeSourceHTTP | None = None
    """A file of a web server."""
    imageio: DataVolumeSourceImageIO | None = None
    """A disk of oVirt."""
    pvc: DataVolumeSourcePVC | None = None
    """Another claim."""
    registry: DataVolumeSourceRegistry | None = None
    """A container image."""
    s3: DataVolumeSourceS3 | None = None
    """An object of S3 storage."""
    snapshot: DataVolumeSourceSnapshot | None = None
    """A snapshot of a volume."""
    upload: DataVolumeSourceUpload | None = None
    """A file that a client sends."""
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
    """A claim whose missing parts come from the storage profile."""

    accessModes: list[str] | None = None
    """How nodes may use the volume at the same time."""
    dataSource: TypedLocalObjectReference | None = None
    """What it is filled from at first."""
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
    """A claim and what it is filled with."""

    checkpoints: list[DataVolumeCheckpoint] | None = None
    """Stages of an import in several passes."""
    contentType: str | None = None
    """kubevirt for a disk image, archive for a tar archive of files."""
    finalCheckpoint: bool | None = None
    """The last stage is among them."""
    preallocation: bool | None = None
    """Takes all the space at once."""
    priorityClassName: str | None = None
    """Priority of the pod that fills it."""
    pvc: PersistentVolumeClaimSpec | None = None
    """The PersistentVolumeClaim."""
    source: DataVolumeSource | None = None
    """What it is filled with."""
    sourceRef: DataVolumeSourceRef | None = None
    """A DataSource with the content to import."""
    storage: StorageSpec | None = None
    """The claim; absent fields are taken from the storage profile."""
