"""The overlay that `make up` applies, and the names of pushed images."""

import json
from pathlib import Path

import pytest

from cluster.console import ClusterError
from deploy import hyperlet

IMAGES = {
    "launcher": {"ref": "hyperlet.local/launcher:1a", "archive": "/a"},
    "node": {"ref": "hyperlet.local/node:2b", "archive": "/b"},
    "cluster": {"ref": "hyperlet.local/cluster:3c", "archive": "/c"},
    "guest-tiny": {"ref": "hyperlet.local/guests/tiny:1", "archive": "/d"},
}


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str, *components: str) -> dict[str, object]:
    monkeypatch.setattr(hyperlet, "RUN", tmp_path)
    folder = hyperlet.overlay(IMAGES, registry, components)
    read: dict[str, object] = json.loads((folder / "kustomization.yaml").read_text())
    listed = [*read["resources"], *read["components"], *read["configurations"]]  # type: ignore[misc]
    assert all((folder / each).exists() for each in listed), "kustomize would not find it"
    return read


def test_overlay_sets_images_of_all_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = written(tmp_path, monkeypatch, "")
    assert here["images"] == [
        {"name": "hyperlet.local/launcher", "newName": "hyperlet.local/launcher", "newTag": "1a"},
        {"name": "hyperlet.local/node", "newName": "hyperlet.local/node", "newTag": "2b"},
        {"name": "hyperlet.local/cluster", "newName": "hyperlet.local/cluster", "newTag": "3c"},
    ]
    there = written(tmp_path, monkeypatch, "registry.example:5000/team")
    assert [each["newName"] for each in there["images"]] == [  # type: ignore[attr-defined]
        f"registry.example:5000/team/{role}" for role in hyperlet.ROLES
    ]


def test_overlay_includes_requested_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(tmp_path, monkeypatch, "")["components"] == []
    (component,) = written(tmp_path, monkeypatch, "", "containerd-socket")["components"]  # type: ignore[misc]
    assert component.endswith("manifests/components/containerd-socket")


def test_pushed_images_keep_path() -> None:
    assert hyperlet.pushed_name("hyperlet.local/guests/tiny:1", "registry.example") == "registry.example/guests/tiny:1"


def test_example_uses_pushed_guest_image() -> None:
    assert "image: hyperlet.local/guests/tiny:1\n" in hyperlet.EXAMPLE.read_text()
    assert hyperlet.EXAMPLE_GUEST == "guest-tiny"


class Server:
    """kubectl against an API server that answers the trial so, one answer after the other."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def __call__(self, *args: str, stdin: str = "") -> str:
        assert "--dry-run=server" in args, "a pod would be made"
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return json.dumps({"spec": answer})


NO_ACCOUNT = ClusterError('error: pods "hyperlet-trial" is forbidden: error looking up service account default/default')
NO_SOURCE = ClusterError("error: Pod is invalid: spec.volumes[0]: Required value: must specify a volume type")


@pytest.mark.parametrize(
    "answers, found",
    [
        ([{"volumes": [{"name": "trial", "image": {"reference": "x"}}]}], True),
        ([{"volumes": [{"name": "token"}]}], False),
        ([{}], False),
        ([NO_SOURCE], False),
        ([NO_ACCOUNT, NO_ACCOUNT, {"volumes": []}], False),
    ],
)
def test_image_volume_detection_retries_until_conclusive(answers: list[object], found: bool) -> None:
    server = Server(*answers)
    assert hyperlet.has_image_volumes(server) is found  # type: ignore[arg-type]
    assert not server.answers


def test_inconclusive_detection_assumes_image_volumes() -> None:
    assert hyperlet.has_image_volumes(Server(NO_ACCOUNT, NO_ACCOUNT), seconds=0) is True  # type: ignore[arg-type]
