import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

import pytest

from api.kubevirt.vmi import VirtualMachineInstance
from api.schema import codec
from launcher.domain.facts import DiskFacts, InvalidVmi
from launcher.paths import Paths
from launcher.storage import claims, disks, iso_images
from launcher.storage.untrusted_files import Missing


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> Paths:
    paths = Paths(str(tmp_path))
    for folder in (paths.images, paths.volumes, paths.cloudinit, paths.disks, paths.media, paths.block_volumes):
        pathlib.Path(folder).mkdir(parents=True)
    return paths


def vmi(volume: dict[str, Any], status: dict[str, Any] | None = None, **spec: Any) -> VirtualMachineInstance:
    devices = {"disks": [{"name": "v"}]} if volume else {}
    document = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm", "namespace": "ns"},
        "spec": {"domain": {"devices": devices}, "volumes": [{"name": "v", **volume}] if volume else [], **spec},
        "status": status or {},
    }
    return codec.decode(VirtualMachineInstance, json.dumps(document))


def find(paths: Paths, volume: dict[str, Any], **more: Any) -> DiskFacts:
    return disks.find_disks(vmi(volume, **more), paths)["v"]


def image(paths: Paths, files: dict[str, bytes]) -> pathlib.Path:
    root = pathlib.Path(paths.images, "v")
    root.mkdir()
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


CONTAINER_DISK = {"containerDisk": {"image": "registry/guest:1"}}


def test_the_only_file_under_disk(paths: Paths) -> None:
    root = image(paths, {"disk/guest.img": bytes(1 << 20), "etc/passwd": b"x"})
    found = find(paths, CONTAINER_DISK)
    assert (found.format, found.size, found.ephemeral) == ("qcow2", 1 << 20, True)
    assert (found.backing, found.backing_format) == (str(root / "disk/guest.img"), "raw")
    assert pathlib.Path(found.path) == pathlib.Path(paths.disks, "v.qcow2")


def test_path_and_link_are_resolved_inside_the_image(paths: Paths, tmp_path: pathlib.Path) -> None:
    root = image(paths, {"disk/a.img": bytes(512), "other/b.img": bytes(1024)})
    assert find(paths, {"containerDisk": {"image": "i", "path": "/other/b.img"}}).size == 1024
    assert find(paths, {"containerDisk": {"image": "i", "path": "/../../other/b.img"}}).size == 1024
    (tmp_path / "outside.img").write_bytes(bytes(2048))
    (root / "disk/evil.img").symlink_to(tmp_path / "outside.img")
    with pytest.raises(Missing, match=r"volume v: the image i has no file /disk/evil.img"):
        find(paths, {"containerDisk": {"image": "i", "path": "/disk/evil.img"}})


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"etc/passwd": b"x"}, "has no directory /disk"),
        ({"disk/.keep": b""}, "has no file under /disk"),
        ({"disk/b": b"x", "disk/a": b"x"}, "has 2 files under /disk: a, b; set path to one of them"),
        ({f"disk/{n}": b"x" for n in range(9)}, r"has 9 files under /disk: 0, 1, 2, 3, 4, \.\.\.;"),
        ({"disk/x": b""}, "/disk/x is not a disk: it is empty"),
        ({"disk/x": b"hello, I am a text file\n"}, "neither a qcow2 image nor a multiple of 512 bytes, but 24 byt"),
        ({"disk/x": b"KDMV" + bytes(508)}, "it is a VMDK image; only qcow2 and raw are"),
        ({"disk/x": b"\x1f\x8b" + bytes(510)}, "it is compressed by gzip"),
        ({"disk/x": b"QFI\xfb" + b"\xff" * 508}, "the qcow2 header is damaged"),
        ({"disk/x": b"QFI\xfb"}, "the qcow2 header is truncated"),
    ],
)
def test_images_without_a_usable_disk(paths: Paths, files: dict[str, bytes], words: str) -> None:
    image(paths, files)
    with pytest.raises(Missing, match=words) as raised:
        find(paths, CONTAINER_DISK)
    assert "volume v: the image registry/guest:1" in str(raised.value)


def test_missing_image_raises_missing(paths: Paths) -> None:
    with pytest.raises(Missing, match="the image registry/guest:1 is not mounted at /images/v"):
        find(paths, CONTAINER_DISK)


def test_special_files_are_rejected(paths: Paths) -> None:
    root = image(paths, {"disk/a/b": b"x"})
    os.mkfifo(root / "disk/pipe")
    with pytest.raises(Missing, match="/disk/pipe cannot be used: is not a regular file"):
        find(paths, CONTAINER_DISK)


def test_kernel_boot(paths: Paths) -> None:
    root = pathlib.Path(paths.images, "kernel-boot")
    (root / "boot").mkdir(parents=True)
    (root / "boot/kernel").write_bytes(b"k")
    container = {"image": "registry/kernel", "kernelPath": "/boot/kernel"}
    wanted = vmi({})
    spec = {"domain": {"devices": {}, "firmware": {"kernelBoot": {"container": container}}}}
    wanted = vmi({}, **spec)
    assert disks.kernel_boot(wanted, paths) == (str(root / "boot/kernel"), None)
    container["initrdPath"] = "/boot/none"
    with pytest.raises(Missing, match=r"kernelBoot: the image registry/kernel has no file /boot/none"):
        disks.kernel_boot(vmi({}, **spec), paths)


# -- claims

CLAIM = {"persistentVolumeClaim": {"claimName": "data"}}


def claim_status(capacity: str) -> dict[str, Any]:
    info = {"capacity": {"storage": capacity}}
    return {"volumeStatus": [{"name": "v", "target": "", "persistentVolumeClaimInfo": info}]}


def test_claim_disk_is_created_once(paths: Paths) -> None:
    folder = pathlib.Path(paths.volumes, "v")
    folder.mkdir()
    assert find(paths, CLAIM, status=claim_status("16Mi")).size == 16 << 20
    (folder / "disk.img").write_bytes(b"mine".ljust(17 << 20, b"\0"))
    found = find(paths, CLAIM, status=claim_status("16Mi"))
    assert (found.size, found.ephemeral, found.format) == (17 << 20, False, "raw"), "a disk never shrinks"
    assert (folder / "disk.img").read_bytes().startswith(b"mine")


def test_claim_disk_grows_with_its_claim(paths: Paths) -> None:
    folder = pathlib.Path(paths.volumes, "v")
    folder.mkdir()
    (folder / "disk.img").write_bytes(b"mine".ljust(4096, b"\0"))
    assert find(paths, CLAIM, status=claim_status("16Mi")).size == 16 << 20
    with (folder / "disk.img").open("rb") as file:
        assert file.read(4) == b"mine" and file.seek(0, os.SEEK_END) == 16 << 20
    read_only = {"persistentVolumeClaim": {"claimName": "data", "readOnly": True}}
    assert find(paths, read_only, status=claim_status("32Mi")).size == 16 << 20, "not ours to change"


def test_claim_without_capacity_uses_its_request(paths: Paths) -> None:
    pathlib.Path(paths.volumes, "v").mkdir()
    info = {"requests": {"storage": "8Mi"}}
    status = {"volumeStatus": [{"name": "v", "target": "", "persistentVolumeClaimInfo": info}]}
    assert find(paths, CLAIM, status=status).size == 8 << 20


def test_growable_size_of_a_disk_in_use(paths: Paths) -> None:
    folder = pathlib.Path(paths.volumes, "v")
    folder.mkdir()
    (folder / "disk.img").write_bytes(bytes(4 << 20))
    wanted = vmi(CLAIM, status=claim_status("16Mi"))
    assert disks.grown(wanted, {"v": 4 << 20}, paths) == {"v": 16 << 20}
    assert disks.grown(wanted, {"v": 16 << 20}, paths) == {}
    assert disks.grown(wanted, {}, paths) == {}
    assert (folder / "disk.img").stat().st_size == 4 << 20, "it is QEMU's to grow"


def test_new_disk_fits_its_file_system(paths: Paths) -> None:
    folder = pathlib.Path(paths.volumes, "v")
    folder.mkdir()
    system = os.statvfs(folder)
    size = find(paths, CLAIM, status=claim_status("8Ei")).size
    assert 0 < size <= system.f_blocks * system.f_frsize


def test_unusable_claims_raise_missing(paths: Paths, tmp_path: pathlib.Path) -> None:
    with pytest.raises(Missing, match="volume v: claim data is mounted neither at"):
        find(paths, CLAIM)
    folder = pathlib.Path(paths.volumes, "v")
    folder.mkdir()
    with pytest.raises(Missing, match="does not exist, and the claim is read-only"):
        find(paths, {"persistentVolumeClaim": {"claimName": "data", "readOnly": True}})
    (tmp_path / "host").write_bytes(bytes(512))
    (folder / "disk.img").symlink_to(tmp_path / "host")
    with pytest.raises(Missing, match="cannot be used"):
        find(paths, CLAIM)
    (folder / "disk.img").unlink()
    (folder / "disk.img").write_bytes(b"")
    with pytest.raises(Missing, match="is empty"):
        find(paths, CLAIM)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"QFI\xfb\0\0\0\3".ljust(16, b"\0"), "is a qcow2 image, but a claim must hold a raw disk"),
        (b"QFI\xfb\0\0\0\3\0\0\0\0\0\0\1\0", "is a qcow2 image with a backing file, but a claim"),
        (b"KDMV", "is a VMDK image, but a claim"),
    ],
)
def test_image_file_on_a_claim_is_rejected_and_unchanged(paths: Paths, start: bytes, words: str) -> None:
    folder = pathlib.Path(paths.volumes, "v")
    folder.mkdir()
    (folder / "disk.img").write_bytes(start.ljust(4096, b"\0"))
    with pytest.raises(Missing, match=f"volume v: disk.img of claim data {words}"):
        find(paths, CLAIM, status=claim_status("16Mi"))
    assert (folder / "disk.img").stat().st_size == 4096, "not grown to the claim's size"


@pytest.mark.parametrize("start", [b"LUKS\xba\xbe", b"\x1f\x8b"])
def test_guest_written_headers_are_accepted(paths: Paths, start: bytes) -> None:
    folder = pathlib.Path(paths.volumes, "v")
    folder.mkdir()
    (folder / "disk.img").write_bytes(start.ljust(4096, b"\0"))
    assert find(paths, CLAIM, status=claim_status("16Mi")).size == 16 << 20


def test_partial_sector_size_message_has_the_required_size(paths: Paths) -> None:
    folder = pathlib.Path(paths.volumes, "v")
    folder.mkdir()
    (folder / "disk.img").write_bytes(bytes(1000))
    read_only = {"persistentVolumeClaim": {"claimName": "data", "readOnly": True}}
    with pytest.raises(Missing, match=r"claim data has 1000 bytes, which is not a multiple of 512: make it 1024 "):
        find(paths, read_only)
    assert find(paths, CLAIM, status=claim_status("16Mi")).size == 16 << 20, "one that grows has none any more"


LOCK = 'internal error: process exited: -blockdev {"filename":"/volumes/b/disk.img"}: Failed to get "write" lock'
CLAIMS = {"a": "first", "b": "second"}


def test_lock_error_names_volume_and_claim() -> None:
    assert claims.in_use(LOCK, CLAIMS) == (
        "volume b: claim second is in use by another virtual machine or pod, which holds QEMU's lock on it: stop that "
        "one first, or give each its own claim"
    )
    vague = claims.in_use('Failed to get shared "write" lock', CLAIMS)
    assert vague is not None and vague.startswith("volume a: claim first or volume b: claim second is in use")
    assert claims.in_use("Could not open '/volumes/b/disk.img': Permission denied", CLAIMS) is None
    assert claims.in_use(LOCK, {}) is not None


def test_empty_disk_and_unknown_volume(paths: Paths) -> None:
    found = find(paths, {"emptyDisk": {"capacity": "1000001"}})
    assert found.size == pathlib.Path(found.path).stat().st_size == 1000448
    with pytest.raises(InvalidVmi, match=r"spec.volumes\[0\]: a disk cannot use a volume of type hostDisk"):
        find(paths, {"hostDisk": {"path": "/etc/shadow", "type": "Disk"}})


# -- media


def read_iso(path: str, name: str) -> bytes:
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.open(path)
    from io import BytesIO

    out = BytesIO()
    iso.get_file_from_iso_fp(out, rr_path=name)
    joliet = BytesIO()
    iso.get_file_from_iso_fp(joliet, joliet_path=name)
    assert out.getvalue() == joliet.getvalue()
    iso.close()
    return out.getvalue()


def label(path: str) -> str:
    return pathlib.Path(path).read_bytes()[32808:32840].decode().strip()


def test_no_cloud(paths: Paths) -> None:
    evil = "#cloud-config\npassword: \"$(reboot)'<&>\u00e4\n"
    found = find(paths, {"cloudInitNoCloud": {"userData": evil, "networkData": "version: 2"}}, hostname="guest")
    assert label(found.path) == "cidata" and found.readonly
    assert read_iso(found.path, "/user-data").decode() == evil
    assert read_iso(found.path, "/network-config") == b"version: 2"
    assert json.loads(read_iso(found.path, "/meta-data")) == {"instance-id": "vm.ns", "local-hostname": "guest"}


def test_config_drive_from_secrets_and_base64(paths: Paths) -> None:
    folder = pathlib.Path(paths.cloudinit, "v")
    folder.mkdir()
    (folder / "..1").mkdir()
    (folder / "..1/userdata").write_text("secret")
    (folder / "..data").symlink_to("..1")
    (folder / "userdata").symlink_to("..data/userdata")
    source = {"secretRef": {"name": "s"}, "networkDataBase64": "e30="}
    found = find(paths, {"cloudInitConfigDrive": source})
    assert label(found.path) == "config-2"
    assert read_iso(found.path, "/openstack/latest/user_data") == b"secret"
    assert read_iso(found.path, "/openstack/latest/network_data.json") == b"{}"
    assert json.loads(read_iso(found.path, "/openstack/latest/meta_data.json"))["hostname"] == "vm"


def test_config_drive_rejects_yaml_from_a_secret(paths: Paths) -> None:
    folder = pathlib.Path(paths.cloudinit, "v")
    folder.mkdir()
    (folder / "networkdata").write_text("version: 2")
    with pytest.raises(
        InvalidVmi, match="volume v: cloudInitConfigDrive's network data must be a JSON object: a config"
    ):
        find(paths, {"cloudInitConfigDrive": {"networkDataSecretRef": {"name": "s"}}})


def test_secret_without_key_raises_missing(paths: Paths) -> None:
    with pytest.raises(Missing, match="volume v: Secret s has no key userdata"):
        find(paths, {"cloudInitNoCloud": {"secretRef": {"name": "s"}}})
    with pytest.raises(InvalidVmi, match="volume v: userDataBase64: is not base64"):
        find(paths, {"cloudInitNoCloud": {"userDataBase64": "*"}})


def test_config_map_as_a_disk(paths: Paths, tmp_path: pathlib.Path) -> None:
    folder = pathlib.Path(paths.volumes, "v")
    (folder / "..data").mkdir(parents=True)
    (folder / "..data/app.conf").write_text("a=1")
    (folder / "app.conf").symlink_to("..data/app.conf")
    (folder / ("k" * 100)).write_text("long")
    found = find(paths, {"configMap": {"name": "settings", "volumeLabel": "cfg"}})
    assert label(found.path) == "cfg"
    assert read_iso(found.path, "/app.conf") == b"a=1"
    (folder / "big").write_bytes(bytes(iso_images.LARGEST_FILE + 1))
    with pytest.raises(Missing, match="volume v: big cannot be read: has more than"):
        find(paths, {"configMap": {"name": "settings"}})


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")
def test_a_qcow2_image_below_the_overlay(paths: Paths) -> None:
    root = image(paths, {"disk/x": b""})
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", root / "disk/x", "7M"], check=True)
    found = find(paths, CONTAINER_DISK)
    assert (found.size, found.backing_format) == (7 << 20, "qcow2")
    subprocess.run(["qemu-img", "check", "-q", found.path], check=True)
