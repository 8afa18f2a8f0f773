"""The test cluster's storage: manifests, and the image with the sidecars."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cluster import binaries, images, storage
from cluster import storage_manifests as manifests
from cluster.csi.kinds import KINDS
from cluster.kubectl import Kubectl

ITEMS = manifests.manifests("x.local/node:1", "x.local/sidecars:1")


def of_kind(kind: str) -> dict[str, Any]:
    return {item["metadata"]["name"]: item for item in ITEMS if item["kind"] == kind}


def test_every_kind_of_storage_has_its_objects() -> None:
    for kind in KINDS.values():
        driver = of_kind("CSIDriver")[kind.driver]["spec"]
        assert driver["attachRequired"] == kind.shared
        storage_class = of_kind("StorageClass")[kind.name]
        assert storage_class["provisioner"] == kind.driver
        assert storage_class["allowVolumeExpansion"]
        assert of_kind("VolumeSnapshotClass")[kind.name]["driver"] == kind.driver
    assert of_kind("StorageClass")["local"]["volumeBindingMode"] == "WaitForFirstConsumer"
    assert of_kind("StorageClass")["shared"]["volumeBindingMode"] == "Immediate"


def test_sidecars_run_programs_of_their_image() -> None:
    programs = {each["command"][0] for each in manifests.sidecars()}
    assert programs == {f"/{name}" for name in storage.SIDECARS}
    assert set(storage.SIDECARS) <= set(binaries.EXTRAS.files)
    sockets = [word for each in manifests.sidecars() for word in each["command"] if word.startswith("--csi-address")]
    for kind in KINDS.values():
        assert sockets.count(f"--csi-address=/var/lib/kubelet/plugins/{kind.driver}/csi.sock") == 3 + kind.shared


def test_only_attachable_kinds_have_an_attacher() -> None:
    names = [each["name"] for each in manifests.sidecars()]
    assert [name for name in names if name.startswith("attacher")] == ["attacher-shared"]


def test_configmap_contains_all_driver_code(tmp_path: Path) -> None:
    data = of_kind("ConfigMap")[manifests.DRIVER]["data"]
    volumes = of_kind("DaemonSet")[manifests.DRIVER]["spec"]["template"]["spec"]["volumes"]
    items = next(volume["configMap"]["items"] for volume in volumes if volume["name"] == "code")
    assert {item["key"]: item["path"] for item in items}.keys() == data.keys()
    assert {"cluster/__init__.py", "cluster/csi/__main__.py", "cluster/csi/csi_pb2.py"} <= {i["path"] for i in items}
    assert sum(map(len, data.values())) < 900_000, "a ConfigMap holds a MiB"


def test_changed_code_restarts_the_driver() -> None:
    def annotations(files: dict[str, str]) -> object:
        return manifests._driver("x", files)["spec"]["template"]["metadata"]["annotations"]

    assert annotations({"a": "1"}) == annotations({"a": "1"}) != annotations({"a": "2"})


def test_awaited_crds_are_the_applied_ones() -> None:
    assert storage.crd_names()[0] == "volumesnapshotclasses.snapshot.storage.k8s.io"


class Cluster(Kubectl):
    """A fake kubectl with fixed answers: a list of CSINodes, or of workloads."""

    def __init__(self, drivers: dict[str, list[str]], ready: int) -> None:
        super().__init__(Path("/nowhere"))
        self.answers = {
            "csinodes": [
                {"metadata": {"name": name}, "spec": {"drivers": [{"name": each} for each in names]}}
                for name, names in drivers.items()
            ],
            "deployments,daemonsets": [
                {"metadata": {"name": "csi-driver", "generation": 1}, "spec": {},
                 "status": {"observedGeneration": 1, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2,
                            "numberReady": ready}}
            ],
        }  # fmt: skip

    def __call__(self, *args: str, check: bool = True, stdin: str | None = None) -> str:
        return json.dumps({"items": self.answers[args[1]]})


@pytest.mark.parametrize(
    ("drivers", "ready", "missing"),
    [
        ({"node1": ["local", "shared"], "node2": ["local", "shared"]}, 2, None),
        ({"node1": ["local", "shared"], "node2": ["local"]}, 2, "shared.csi.hyperlet.local is not registered on node2"),
        ({"node1": ["local", "shared"]}, 2, "local.csi.hyperlet.local is not registered on node2"),
        ({"node1": ["local", "shared"], "node2": ["local", "shared"]}, 1, "csi-driver: 1 of 2 ready"),
    ],
)
def test_missing_registrations_are_reported(drivers: dict[str, list[str]], ready: int, missing: str | None) -> None:
    known = {node: [KINDS[name].driver for name in names] for node, names in drivers.items()}
    assert storage.unready(Cluster(known, ready), ["node1", "node2"]) == missing


def test_image_of_several_programs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    target = tmp_path / "image.tar"
    images.programs_archive("x.local/both:1", [tmp_path / "one", tmp_path / "two"], target)
    assert list(images.inspect(target).images) == ["x.local/both:1"]
    with tarfile.open(target) as tar:
        layer = tar.extractfile("layer.tar")
        assert layer is not None
        with tarfile.open(fileobj=io.BytesIO(layer.read())) as inner:
            assert [(each.name, each.mode) for each in inner] == [("one", 0o755), ("two", 0o755)]
    first = target.read_bytes()
    images.programs_archive("x.local/both:1", [tmp_path / "one", tmp_path / "two"], target)
    assert target.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tar", "one", "two"]
