"""`create vm`: valid manifests, and errors of invalid flags."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import yaml

from api.validation.document import validate_document
from tests.unit.cli.conftest import Hyperctl

DISK = "--volume-containerdisk=src:registry.example/images/os:1"


def spec(text: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(text)["spec"]["template"]["spec"]
    return found


def test_create_vm_without_flags(hyperctl: Hyperctl) -> None:
    result = hyperctl("create", "vm")
    document = yaml.safe_load(result.out)
    assert result.code == 0 and validate_document(document) == []
    assert document["metadata"]["name"].startswith("vm-") and "namespace" not in document["metadata"]
    assert document["spec"]["runStrategy"] == "Always"
    assert spec(result.out)["domain"] == {"memory": {"guest": "512Mi"}, "devices": {}}
    assert spec(result.out)["terminationGracePeriodSeconds"] == 180


def test_volumes_and_their_boot_order(hyperctl: Hyperctl) -> None:
    claim = "--volume-pvc=src:data,name:mine,bootorder:1"
    made = spec(hyperctl("create", "vm", "--name=x", f"{DISK},bootorder:2", claim).out)
    assert made["volumes"] == [
        {"name": "x-containerdisk-0", "containerDisk": {"image": "registry.example/images/os:1"}},
        {"name": "mine", "persistentVolumeClaim": {"claimName": "data"}},
    ]
    assert made["domain"]["devices"]["disks"] == [  # type: ignore[index]
        {"name": "x-containerdisk-0", "bootOrder": 2},
        {"name": "mine", "bootOrder": 1},
    ]


def test_more_flags(hyperctl: Hyperctl) -> None:
    words = "create vm --name=x --run-strategy=halted --cpu=2 --memory=1Gi --termination-grace-period=5 -n mine -o json"
    document = json.loads(hyperctl(*words.split()).out)
    assert document["metadata"] == {"name": "x", "namespace": "mine"}
    assert document["spec"]["runStrategy"] == "Halted"
    assert document["spec"]["template"]["spec"]["domain"]["cpu"] == {"cores": 2}


def test_cloud_init_from_flags(hyperctl: Hyperctl, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("a: 'b' #c\n")
    result = hyperctl(
        "create", "vm", "--name=x", "--user=me", f"--password-file={secret}", "--ssh-key=k1,k2", "--ga-manage-ssh"
    )
    assert "warning: --password-file" in result.err
    (volume,) = spec(result.out)["volumes"]  # type: ignore[misc]
    assert volume["name"] == "cloudinitdisk"
    text = volume["cloudInitNoCloud"]["userData"]
    assert text.startswith("#cloud-config\n")
    assert yaml.safe_load(text) == {
        "user": "me",
        "password": "a: 'b' #c",
        "chpasswd": {"expire": False},
        "ssh_authorized_keys": ["k1", "k2"],
        "runcmd": [["setsebool", "-P", "virt_qemu_ga_manage_ssh", "on"]],
    }


def test_cloud_init_data(hyperctl: Hyperctl) -> None:
    data = base64.b64encode(b"#cloud-config").decode()
    network = base64.b64encode(b'{"links": []}').decode()
    words = ("create", "vm", "--name=x", f"--cloud-init-user-data={data}", f"--cloud-init-network-data={network}")
    (volume,) = spec(hyperctl(*words, "--cloud-init=configDrive").out)["volumes"]  # type: ignore[misc]
    assert volume["cloudInitConfigDrive"] == {"networkDataBase64": network, "userDataBase64": data}
    nothing = hyperctl(*words, "--cloud-init=none")
    assert "no effect" in nothing.err and "volumes" not in spec(nothing.out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([DISK.replace("src:", "image:")], "'image' is not one of src:"),
        (["--volume-pvc=name:x"], "src is required"),
        (["--volume-pvc=src:a", "--volume-pvc=src:a"], "duplicate volume 'a'"),
        (["--volume-pvc=src:a,bootorder:0"], "bootorder"),
        (["--volume-pvc=src:a,bootorder:1", "--volume-pvc=src:b,bootorder:1"], "duplicate bootorder 1"),
        (["--run-strategy=Sometimes"], "--run-strategy must be one of"),
        (["--memory=lots"], "spec.template.spec.domain.memory.guest"),
        (["--name=No_Name"], "metadata.name"),
        (["--cloud-init-user-data=%%%"], "not base64"),
        (["--cloud-init-user-data=eA==", "--user=me"], "cannot be combined with"),
        (["--password-file=/nonexistent"], "cannot read"),
        (["--instancetype=u1"], "No such option"),
    ],
)
def test_invalid_flags_are_reported(hyperctl: Hyperctl, words: list[str], said: str) -> None:
    result = hyperctl("create", "vm", *words)
    assert result.code == 1 and result.out == "" and said in result.err, result.err
