"""Strings of a VMI's, on their way into its launcher pod: they stay values, and they loosen nothing."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api import defaults
from api.errors import InvalidObject
from controller.installation.settings import ControllerSettings
from controller.launcher_pod import pod
from tests.unit.controller.objects import SPEC, vmi

ROOT = Path(__file__).resolve().parents[3]


def made(spec: dict[str, Any] | None = None, labels: Any = None, annotations: Any = None) -> dict[str, Any]:
    instance = vmi(spec={**SPEC, **(spec or {})})
    meta = msgspec.structs.replace(instance.metadata, labels=labels, annotations=annotations)
    instance = msgspec.structs.replace(instance, metadata=meta)
    return pod.launcher_pod(defaults.default_vmi(instance), ControllerSettings(), {})


def test_labels_cannot_pass_the_pod_off_as_something_else() -> None:
    theirs = {
        "kubevirt.io": "virt-handler",
        "kubevirt.io/created-by": "victim",
        "vmi.kubevirt.io/id": "victim",
        "a": "b",
    }
    labels = made(labels=theirs)["metadata"]["labels"]
    assert labels["kubevirt.io"] == "virt-launcher" and labels["kubevirt.io/created-by"] == "vmi-uid"
    assert labels["vmi.kubevirt.io/id"] == "web" and labels["a"] == "b"


@pytest.mark.parametrize(
    "key",
    [
        "container.apparmor.security.beta.kubernetes.io/compute",
        "container.seccomp.security.alpha.kubernetes.io/compute",
        "seccomp.security.alpha.kubernetes.io/pod",
        "k8s.v1.cni.cncf.io/networks",
        "io.kubernetes.cri-o.userns-mode",
        "kubernetes.io/config.source",
    ],
)
def test_annotations_cannot_loosen_the_pods_walls(key: str) -> None:
    assert key not in made(annotations={key: "unconfined"})["metadata"]["annotations"]


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "a..b", ".", "", "kernel-boot", "a\n", "/etc"])
def test_a_volumes_name_is_one_step_of_a_path(name: str) -> None:
    volume = {"name": name, "emptyDisk": {"capacity": "1Mi"}}
    with pytest.raises(InvalidObject):
        made({"volumes": [volume]})


def test_user_fields_become_no_host_access_no_token_no_identity() -> None:
    spec = made({"volumes": [{"name": "hyperlet", "secret": {"secretName": "s"}}], "priorityClassName": "high"})["spec"]
    assert [volume["name"] for volume in spec["volumes"]] == ["hyperlet", "v-hyperlet"]
    assert not {"serviceAccountName", "hostNetwork", "hostPID", "hostIPC", "nodeName", "initContainers"} & set(spec)
    assert spec["automountServiceAccountToken"] is False and not any("hostPath" in each for each in spec["volumes"])


@pytest.mark.parametrize(
    "module", ["kit/proc.py", "handler/storage/images.py", "handler/storage/mounts.py", "handler/storage/volumes.py"]
)
def test_nothing_is_imported_while_a_thread_is_in_a_containers_mounts(module: str) -> None:
    """An import in a function could find the container's files, and run them as the handler."""
    tree = ast.parse((ROOT / module).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert functions
    for function in functions:
        inner = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not inner, f"{module}: {function.name} imports"
