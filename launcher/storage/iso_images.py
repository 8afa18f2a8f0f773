"""ISO images for the guest: cloud-init data, ConfigMaps and Secrets.

Sources: cloud-init's datasources NoCloud (label `cidata`) and Config Drive (label `config-2`, openstack/latest/).
"""

import base64
import binascii
import json
from io import BytesIO
from pathlib import Path

from api.kubevirt.vmi import VirtualMachineInstance
from api.kubevirt.volumes import CloudInitConfigDriveSource, CloudInitNoCloudSource, Volume
from api.validation.syntax import NETWORK_DATA, is_json_object
from launcher.domain.facts import InvalidVmi
from launcher.paths import Paths
from launcher.storage.untrusted_files import Missing, read_bounded, resolve

LARGEST_FILE = 2 << 20
"""Kubernetes' limit of an object is lower."""
MOST_FILES = 1024
_JOLIET_NAME = 64

CloudInit = CloudInitNoCloudSource | CloudInitConfigDriveSource


def create(path: Path, vmi: VirtualMachineInstance, volume: Volume, paths: Paths) -> None:
    """Write the image of `volume`. Raises Missing, InvalidVmi, OSError."""
    label, files = contents(vmi, volume, paths)
    _write_iso(path, label, files)


def contents(vmi: VirtualMachineInstance, volume: Volume, paths: Paths) -> tuple[str, dict[str, bytes]]:
    """Label and files (path → data) of a volume's image. Raises Missing, InvalidVmi."""
    if volume.cloudInitNoCloud is not None:
        return "cidata", _no_cloud(vmi, volume.name, volume.cloudInitNoCloud, paths)
    if volume.cloudInitConfigDrive is not None:
        return "config-2", _config_drive(vmi, volume.name, volume.cloudInitConfigDrive, paths)
    source = volume.configMap or volume.secret
    return (source and source.volumeLabel) or "cfgdata", _mounted(volume.name, paths)


def instance_id(vmi: VirtualMachineInstance) -> str:
    """Stable across restarts: a new instance ID makes cloud-init run everything again."""
    return f"{vmi.metadata.name}.{vmi.metadata.namespace}"


def hostname(vmi: VirtualMachineInstance) -> str:
    """The guest's host name."""
    return vmi.spec.hostname or vmi.metadata.name or ""


def _no_cloud(vmi: VirtualMachineInstance, name: str, source: CloudInit, paths: Paths) -> dict[str, bytes]:
    user, network = _user_and_network(name, source, paths)
    files = {
        "meta-data": json.dumps({"instance-id": instance_id(vmi), "local-hostname": hostname(vmi)}).encode(),
        "user-data": user or b"",
    }
    if network is not None:
        files["network-config"] = network
    return files


def _config_drive(vmi: VirtualMachineInstance, name: str, source: CloudInit, paths: Paths) -> dict[str, bytes]:
    user, network = _user_and_network(name, source, paths)
    meta = {"instance_id": instance_id(vmi), "uuid": instance_id(vmi), "hostname": hostname(vmi)}
    files = {"openstack/latest/meta_data.json": json.dumps(meta).encode()}
    if user is not None:
        files["openstack/latest/user_data"] = user
    if network is not None:
        # Admission validates inline data; this may come from a Secret.
        if not is_json_object(network):
            raise InvalidVmi(f"volume {name}: cloudInitConfigDrive's network data {NETWORK_DATA}")
        files["openstack/latest/network_data.json"] = network
    return files


def _user_and_network(name: str, source: CloudInit, paths: Paths) -> tuple[bytes | None, bytes | None]:
    folder = Path(paths.cloudinit, name)
    user = _inline(f"volume {name}: userData", source.userData, source.userDataBase64)
    if user is None and source.secretRef is not None:
        user = _from_secret(folder, "userdata", f"volume {name}: Secret {source.secretRef.name}")
    network = _inline(f"volume {name}: networkData", source.networkData, source.networkDataBase64)
    if network is None and source.networkDataSecretRef is not None:
        network = _from_secret(folder, "networkdata", f"volume {name}: Secret {source.networkDataSecretRef.name}")
    return user, network


def _inline(what: str, text: str | None, encoded: str | None) -> bytes | None:
    if text:
        return text.encode("utf-8", "surrogatepass")
    if not encoded:
        return None
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except binascii.Error as error:
        raise InvalidVmi(f"{what}Base64: is not base64: {error}") from None


def _from_secret(folder: Path, key: str, what: str) -> bytes:
    try:
        return read_bounded(resolve(folder, key), LARGEST_FILE)
    except FileNotFoundError:
        raise Missing(f"{what} has no key {key}") from None
    except (OSError, ValueError) as error:
        raise Missing(f"{what}: {key} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _mounted(name: str, paths: Paths) -> dict[str, bytes]:
    """The files of a Secret or ConfigMap at /volumes/<volume>, without kubelet's own (`..data`)."""
    folder = Path(paths.volumes, name)
    files: dict[str, bytes] = {}
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".."))
    except OSError as error:
        raise Missing(f"volume {name}: nothing is mounted at {folder}: {error.strerror}") from None
    if len(names) > MOST_FILES:
        raise Missing(f"volume {name}: more than {MOST_FILES} files")
    for key in names:
        try:
            files[key] = read_bounded(resolve(folder, key), LARGEST_FILE)
        except (OSError, ValueError) as error:
            raise Missing(f"volume {name}: {key} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return files


def _write_iso(path: Path, label: str, files: dict[str, bytes]) -> None:
    """ISO 9660 with Rock Ridge for Linux and Joliet for Windows."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=label)
    made: dict[str, str] = {"": ""}
    for number, (name, data) in enumerate(files.items()):
        folder, _, last = name.rpartition("/")
        parent = _make_folder(iso, folder, made)
        joliet = f"/{name}" if len(last) <= _JOLIET_NAME else None
        iso.add_fp(BytesIO(data), len(data), f"{parent}/F{number:07}.;1", rr_name=last, joliet_path=joliet)
    iso.write(str(path))
    iso.close()


def _make_folder(iso: object, folder: str, made: dict[str, str]) -> str:
    """The ISO 9660 path of `folder`, created if missing."""
    if folder not in made:
        above, _, last = folder.rpartition("/")
        made[folder] = f"{_make_folder(iso, above, made)}/D{len(made):07}"
        iso.add_directory(made[folder], rr_name=last, joliet_path=f"/{folder}")  # type: ignore[attr-defined]
    return made[folder]
