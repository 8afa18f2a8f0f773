"""README's section "On a cluster of your own", as typed: images by podman, a registry, an overlay, pulls, a VM."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import hyperlet
from guests import tiny
from images import base, builder
from images.paths import CACHE
from tests.e2e.manifests import idle
from tests.e2e.registry import PASSWORD, USER, Registry, run_registry
from tests.e2e.support import EXISTING, ROOT, SYSTEM, E2eNamespace, Json, Kubectl, conditions, create_namespace, image

pytestmark = [
    pytest.mark.alone,  # its images replace those that the other tests use
    pytest.mark.skipif(EXISTING, reason="needs nodes of its own"),
]

CHECKOUT = (
    *("api", "kit", "protos", "controller", "gateway", "handler", "launcher", "cni", "images", "manifests", "examples"),
    *("cluster", "guests", "Containerfile", ".containerignore", "README.md"),
)
STORE = CACHE / "podman"


def typed_blocks() -> list[str]:
    """The commands of README's section, block by block."""
    section = (ROOT / "README.md").read_text().partition("## On a cluster of your own\n")[2].partition("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def workloads(kubectl: Kubectl) -> list[Json]:
    return kubectl.in_namespace(SYSTEM).items("deployments,daemonsets")


@pytest.fixture(scope="module")
def restored_deployment(kubectl: Kubectl) -> Iterator[None]:
    """Restore the deployment of `make up` at the end."""
    yield
    kubectl.in_namespace(SYSTEM)(
        "patch", "kubevirt", "kubevirt", "--type=merge", "-p", '{"spec": {"imagePullSecrets": null}}'
    )
    command = [sys.executable, "-m", "deploy.hyperlet", "up"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    kubectl.in_namespace(SYSTEM)("delete", "secret", "registry", "--ignore-not-found")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A separate checkout, in which the commands create their files."""
    for name in CHECKOUT:
        source, target = ROOT / name, tmp_path / "checkout" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    return tmp_path / "checkout"


@pytest.fixture
def podman(tmp_path: Path) -> dict[str, str]:
    """The environment of podman: a store of its own in the cache, with a Debian in it as from a registry."""
    STORE.mkdir(parents=True, exist_ok=True)
    storage = STORE / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{STORE}/root"\nrunroot = "{STORE}/run"\n')
    environment = {"CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}
    own = builder.ImageBuilder()
    archive, name = tmp_path / "base.tar", base.build(own)
    own.export(name, archive)
    for command in (["load", "--quiet", "--input", str(archive)], ["tag", name, "localhost/debian:trixie-slim"]):
        done = subprocess.run(
            ["podman", *command], env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    archive.unlink()
    return environment


@contextlib.contextmanager
def own_registry(space: E2eNamespace, folder: Path, *, locked: bool = False) -> Iterator[Registry]:
    """A registry whose images and pull records are removed from the nodes at the end."""
    with run_registry(space, "own", folder / "registry", locked=locked) as registry:
        try:
            yield registry
        finally:
            registry.clear_pull_records()


def guest_disk(folder: Path) -> Path:
    """A copy of the tiny guest's disk, in place of a user's own disk."""
    return Path(shutil.copy2(tiny.build().qcow2, folder / "mine.qcow2"))


def test_readme_commands_deploy_hyperlet_and_run_vm(
    kubectl: Kubectl, restored_deployment: None, checkout: Path, podman: dict[str, str], tmp_path: Path
) -> None:
    blocks = typed_blocks()
    assert [block.split()[0] for block in blocks] == ["export", "mkdir", "cat", "kubectl", "kubectl", "printf"]
    build, overlay, secret, deployment, launchers, machine = blocks
    space = create_namespace(kubectl, "own-cluster")
    kubeconfig = tmp_path / "kubeconfig"
    shutil.copy(kubectl.kubeconfig, kubeconfig)
    # The VM is created in the user's own namespace.
    subprocess.run(
        ["kubectl", f"--kubeconfig={kubeconfig}", "config", "set-context", "--current", f"--namespace={space.name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    authorities = os.environ.get("PIP_CERT")
    environment = {
        **podman,
        "KUBECONFIG": str(kubeconfig),
        "OPTIONS": f"--secret id=pip-ca,src={authorities}" if authorities else "",
        "LOGIN": USER,
        "PASSWORD": PASSWORD,
        "DISK": str(guest_disk(tmp_path)),
    }
    try:
        with own_registry(space, tmp_path, locked=True) as registry:

            def type_in(block: str) -> str:
                # The one value that each reader replaces.
                words = block.replace("registry.example", registry.name)
                return registry.run_on_host(
                    "bash", "-ec", f"export REGISTRY={registry.name}; cd {checkout}; {words}", **environment
                )

            for block in (build, overlay, secret, deployment):
                type_in(block)
            names = {
                container["image"]
                for workload in workloads(kubectl)
                for container in workload["spec"]["template"]["spec"]["containers"]
            }
            assert names == {f"{registry.name}/node:0.1.0", f"{registry.name}/cluster:0.1.0"}
            # Without the next step, a VM says what its pod lacks.
            waiting = space.apply_vm(idle("waiting")).until_status("ErrImagePull", "ImagePullBackOff")
            waiting.until_condition_message(
                f"the launcher: image {registry.name}/launcher:0.1.0: ", "spec.imagePullSecrets of the KubeVirt object"
            )
            waiting.delete()
            type_in(launchers)
            # Its disk's image asks for the password, too; the pod's secrets serve all its images.
            type_in(machine)
            hello = space.existing_vm("hello").until_status("Running")
            assert hello.answer()["hostname"] == "hello"
            pod = hello.pod()["spec"]
            assert pod["containers"][0]["image"] == f"{registry.name}/launcher:0.1.0"
            assert [volume["image"]["reference"] for volume in pod["volumes"] if "image" in volume] == [
                f"{registry.name}/disk:1"
            ]
            hello.delete()
    finally:
        space.clear()


def test_make_up_on_existing_cluster_pushes_images_and_runs_example(
    kubectl: Kubectl, restored_deployment: None, tmp_path: Path
) -> None:
    space = create_namespace(kubectl, "existing-cluster")
    try:
        with own_registry(space, tmp_path) as registry:
            # An existing VM would not be restarted with the disk from the registry.
            kubectl("delete", "vm", "hello", "--ignore-not-found", "--timeout=90s")
            said = registry.run_on_host(
                sys.executable, "-m", "deploy.hyperlet", "up",
                HYPERLET_CLUSTER="existing", HYPERLET_REGISTRY=registry.name, KUBECONFIG=str(kubectl.kubeconfig),
                HYPERLET_RUN=str(tmp_path / "run"),
            )  # fmt: skip
            assert f"push {registry.name}/launcher:" in said and "virtual machine hello runs" in said
            for workload in workloads(kubectl):
                for container in workload["spec"]["template"]["spec"]["containers"]:
                    assert container["image"].startswith(f"{registry.name}/"), container["image"]
            volumes = json.loads(kubectl("get", "vm", "hello", "-o", "json"))["spec"]["template"]["spec"]["volumes"]
            assert volumes[0]["containerDisk"]["image"] == f"{registry.name}/guests/tiny:1"
    finally:
        space.clear()


# ---- servers without image volumes


def deploy_with(kubectl: Kubectl, *components: str) -> None:
    """Deploy the built images with these components, and wait until the handlers run so."""
    # Without the tests' namespace: the manifests say theirs.
    hyperlet.Kubectl(kubectl.kubeconfig)("apply", "-k", str(hyperlet.overlay(hyperlet.built_images(), "", components)))
    kubectl.in_namespace(SYSTEM)("rollout", "status", "daemonset/hyperlet-handler", "--timeout=180s")


@pytest.fixture
def without_image_volumes(kubectl: Kubectl, restored_deployment: None) -> Iterator[None]:
    """Configure the controller for a server without image volumes, and the handlers without runtime socket."""
    inside = kubectl.in_namespace(SYSTEM)
    deploy_with(kubectl)
    inside("set", "env", "deployment/hyperlet-controller", "HYPERLET_IMAGE_VOLUMES=never")
    inside("rollout", "status", "deployment/hyperlet-controller", "--timeout=120s")
    yield
    inside("set", "env", "deployment/hyperlet-controller", "HYPERLET_IMAGE_VOLUMES-")
    inside("rollout", "status", "deployment/hyperlet-controller", "--timeout=120s")


def test_vm_without_image_volumes_names_component_and_runs_once_deployed(
    kubectl: Kubectl, without_image_volumes: None, space: E2eNamespace
) -> None:
    if not hyperlet.has_image_volumes(hyperlet.Kubectl(kubectl.kubeconfig)):
        pytest.skip("this server has none: all the other tests are about that")
    machine = space.apply_vm(idle("imageless")).until_status("ErrImagePull")
    told = machine.until_condition_message("volume root", image("guest-halt"), "manifests/components/containerd-socket")
    assert conditions(machine.vm())["Failure"]["reason"] == "ImagePullFailed", told
    assert not [volume for volume in machine.pod()["spec"]["volumes"] if "image" in volume]
    deploy_with(kubectl, "containerd-socket")
    machine.until_status("Running", seconds=120)
    machine.delete()
