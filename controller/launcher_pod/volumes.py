"""Pod volumes and mounts for a VMI's volumes: one builder for each volume type. Pure.

Each builder returns a PodPart. Mount paths: docs/architecture.md, "The launcher pod".
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from api.errors import Fault, InvalidObject
from api.k8s.meta import Json, format_bytes
from api.k8s.objects import PersistentVolumeClaim
from api.kubevirt.vmi import VirtualMachineInstanceSpec
from api.kubevirt.volumes import CloudInitConfigDriveSource, CloudInitNoCloudSource, Volume, claim_name
from controller.launcher_pod import ephemeral_storage

Claims = Mapping[str, PersistentVolumeClaim]

RUN_VOLUME = "hyperlet"
RUN_PATH = "/run/hyperlet"
KERNEL_BOOT = "kernel-boot"

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,59}[a-z0-9])?")


@dataclass(frozen=True)
class PodPart:
    """What one VMI volume adds to the pod and its compute container."""

    volumes: tuple[Json, ...] = ()
    mounts: tuple[Json, ...] = ()
    devices: tuple[Json, ...] = ()
    pull_secrets: tuple[str, ...] = field(default=())


def pod_volume_name(name: str) -> str:
    """The name of the pod volume for a VMI volume: a DNS label, hashed if necessary, that is never `hyperlet`."""
    if _LABEL.fullmatch(name):
        return f"v-{name}"
    return "v-" + re.sub(r"[^a-z0-9]", "-", name)[:44] + "-" + hashlib.sha256(name.encode()).hexdigest()[:12]


def claim_names(spec: VirtualMachineInstanceSpec) -> list[str]:
    """The claims that a VMI references, without duplicates, in the order of its volumes."""
    return list(dict.fromkeys(name for volume in spec.volumes or () if (name := claim_name(volume))))


def parts(spec: VirtualMachineInstanceSpec, claims: Claims, image_volumes: bool) -> list[PodPart]:
    """The PodParts of all volumes. Raises InvalidObject for a volume name that cannot be a path component."""
    made = [_run_part(spec)]
    for index, volume in enumerate(spec.volumes or ()):
        if not _NAME.fullmatch(volume.name) or ".." in volume.name or volume.name == KERNEL_BOOT:
            message = f"{volume.name[:100]!r} is not a valid volume name"
            raise InvalidObject([Fault(f"spec.volumes[{index}].name", "FieldValueInvalid", message)])
        made.append(_part(volume, claims, image_volumes))
    made.append(_kernel_boot_part(spec, image_volumes))
    return made


def _run_part(spec: VirtualMachineInstanceSpec) -> PodPart:
    limit = ephemeral_storage.size_limit(spec)
    source = {} if limit is None else {"sizeLimit": format_bytes(limit)}
    return PodPart(({"name": RUN_VOLUME, "emptyDir": source},), ({"name": RUN_VOLUME, "mountPath": RUN_PATH},))


def _part(volume: Volume, claims: Claims, image_volumes: bool) -> PodPart:
    if claim_name(volume):
        return _claim_part(volume, claims)
    if volume.containerDisk:
        disk = volume.containerDisk
        return _image_part(volume.name, disk.image, disk.imagePullPolicy, disk.imagePullSecret, image_volumes)
    if volume.secret or volume.configMap:
        return _keys_part(volume)
    source = volume.cloudInitNoCloud or volume.cloudInitConfigDrive
    return _cloud_init_part(volume.name, source) if source else PodPart()


def _claim_part(volume: Volume, claims: Claims) -> PodPart:
    name, claim = pod_volume_name(volume.name), claim_name(volume)
    source = volume.persistentVolumeClaim
    read_only = bool(volume.ephemeral or (source and source.readOnly))
    # An ephemeral disk is read-only in the mount only: readOnly in the pod volume would be passed to the storage.
    pod_volume: Json = {"name": name, "persistentVolumeClaim": {"claimName": claim}}
    if source and source.readOnly:
        pod_volume["persistentVolumeClaim"]["readOnly"] = True
    found = claims.get(claim or "")
    if found is not None and found.spec.volumeMode == "Block":
        return PodPart((pod_volume,), (), ({"name": name, "devicePath": f"/dev/volumes/{volume.name}"},))
    mount: Json = {"name": name, "mountPath": f"/volumes/{volume.name}"}
    return PodPart((pod_volume,), ({**mount, "readOnly": True} if read_only else mount,))


def _image_part(volume: str, image: str, policy: str | None, secret: str | None, image_volumes: bool) -> PodPart:
    # Also without image volumes: the handler then pulls the images, with the pod's pull secrets.
    secrets = (secret,) if secret else ()
    if not image_volumes:
        return PodPart(pull_secrets=secrets)
    name = pod_volume_name(volume)
    source = {"reference": image, **({"pullPolicy": policy} if policy else {})}
    mount = {"name": name, "mountPath": f"/images/{volume}", "readOnly": True}
    return PodPart(({"name": name, "image": source},), (mount,), (), secrets)


def _kernel_boot_part(spec: VirtualMachineInstanceSpec, image_volumes: bool) -> PodPart:
    firmware = spec.domain.firmware
    container = firmware.kernelBoot.container if firmware and firmware.kernelBoot else None
    if container is None:
        return PodPart()
    policy, secret = container.imagePullPolicy, container.imagePullSecret
    return _image_part(KERNEL_BOOT, container.image, policy, secret, image_volumes)


def _keys_part(volume: Volume) -> PodPart:
    name, source = pod_volume_name(volume.name), {}
    if volume.secret:
        source = {"secret": _present(secretName=volume.secret.secretName, optional=volume.secret.optional)}
    elif volume.configMap:
        source = {"configMap": _present(name=volume.configMap.name, optional=volume.configMap.optional)}
    mount = {"name": name, "mountPath": f"/volumes/{volume.name}", "readOnly": True}
    return PodPart(({"name": name, **source},), (mount,))


def _cloud_init_part(volume: str, source: CloudInitNoCloudSource | CloudInitConfigDriveSource) -> PodPart:
    """The Secrets of cloud-init: all keys, and `userData` and `networkData` also as `userdata` and `networkdata`."""
    wanted = [(source.secretRef, "userData", "userdata"), (source.networkDataSecretRef, "networkData", "networkdata")]
    projected: list[Json] = []
    for reference, key, path in wanted:
        if reference and reference.name:
            # The first source makes the kubelet wait, with an Event, for a missing Secret; the renamed key is optional.
            projected.append({"secret": {"name": reference.name}})
            renamed = {"name": reference.name, "optional": True, "items": [{"key": key, "path": path}]}
            projected.append({"secret": renamed})
    if not projected:
        return PodPart()
    name = pod_volume_name(volume)
    mount = {"name": name, "mountPath": f"/cloudinit/{volume}", "readOnly": True}
    return PodPart(({"name": name, "projected": {"sources": projected}},), (mount,))


def _present(**values: Any) -> Json:
    return {key: value for key, value in values.items() if value is not None}
