"""containerDisks and kernels from a registry: the kubelet pulls them as image volumes; its errors are reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.archive import ArchiveEntry
from tests.e2e.manifests import booting, drive, idle, virtual_machine
from tests.e2e.registry import Registry, inside, run_registry
from tests.e2e.support import (
    EXISTING,
    SYSTEM,
    E2eNamespace,
    Json,
    Kubectl,
    VmUnderTest,
    conditions,
    create_namespace,
    project,
)

PULLING = ("ErrImagePull", "ImagePullBackOff")
# The kubelet retries after 10 s, 20 s, 40 s …
LATER = 120.0


@pytest.fixture(scope="module")
def open_registry(space: E2eNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry without authentication."""
    if EXISTING:
        pytest.skip("needs nodes of its own")
    with run_registry(space, "open", tmp_path_factory.mktemp("open")) as registry:
        yield registry


@pytest.fixture(scope="module")
def locked_registry(space: E2eNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with authentication."""
    if EXISTING:
        pytest.skip("needs nodes of its own")
    with run_registry(space, "locked", tmp_path_factory.mktemp("locked"), locked=True) as registry:
        yield registry


def text_disk(text: str, path: str = "disk/text.img") -> list[ArchiveEntry]:
    """A raw disk with a text at its start; the guest reads it."""
    return [ArchiveEntry(path, b"HLMARK1\n" + text.encode().ljust(8184, b"\0"), mode=0o444)]


def idle_with_image(name: str, reference: str, **source: object) -> Json:
    """An idle VM with a second disk from an image."""
    return idle(name, drive("second", {"containerDisk": {"image": reference, **source}}))


def archive(role: str) -> Path:
    """The archive of an image that the project has built."""
    listing: dict[str, dict[str, str]] = json.loads(project("images", "list", "--json"))
    return Path(listing[role]["archive"])


# ---- image volumes


def test_container_disk_uses_image_volume_and_no_component_mounts_runtime_socket(
    space: E2eNamespace, open_registry: Registry
) -> None:
    reference = open_registry.push_archive("guests/tiny:1", archive("guest-tiny"))
    root = drive("root", {"containerDisk": {"image": reference}})
    machine = space.apply_vm(virtual_machine("pulled", root)).until_status("Running")
    assert machine.answer()["bootId"]
    volumes = {each["name"]: each for each in machine.pod()["spec"]["volumes"]}
    assert volumes["v-root"]["image"]["reference"] == reference
    for workload in space.kubectl.in_namespace(SYSTEM).items("daemonsets,deployments"):
        mounted = [
            each.get("hostPath", {}).get("path", "") for each in workload["spec"]["template"]["spec"].get("volumes", [])
        ]
        assert not [path for path in mounted if "containerd" in path or path in ("/run", "/var/run", "/")], mounted
    machine.discard()


def test_container_disk_with_custom_path_is_read(space: E2eNamespace, open_registry: Registry) -> None:
    reference = open_registry.push("disks/elsewhere:1", text_disk("found elsewhere", "data/deep/elsewhere.raw"))
    second = drive(
        "second", {"containerDisk": {"image": reference, "path": "/data/deep/elsewhere.raw"}}, serial="second"
    )
    machine = space.apply_vm(booting("elsewhere", second)).until_status("Running")
    machine.answer()
    assert (machine.guest().read("second") or "").startswith("found elsewhere")
    machine.discard()
    wrong = space.apply_vm(idle_with_image("nowhere", reference, path="/data/none.raw"))
    wrong.until_condition_message("second", "/data/none.raw")
    wrong.discard()


def test_kernel_boot_image_is_pulled_with_pull_secret(space: E2eNamespace, locked_registry: Registry) -> None:
    reference = locked_registry.push_archive("guests/kernel:1", archive("guest-tiny-kernel"))
    space.apply(locked_registry.pull_secret("for-kernels"))
    files = {"kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"}

    def machine(name: str, **container: str) -> VmUnderTest:
        boot = {
            "kernelArgs": "console=ttyS0 no_timer_check quiet",
            "container": {"image": reference, **files, **container},
        }
        return space.apply_vm(virtual_machine(name, domain={"firmware": {"kernelBoot": boot}}))

    refused = machine("kernel-refused").until_status(*PULLING)
    refused.until_condition_message("firmware.kernelBoot.container", reference, "imagePullSecret")
    refused.discard()
    direct = machine("kernel", imagePullSecret="for-kernels").until_status("Running")
    assert direct.answer()["bootId"]
    direct.discard()


# ---- imagePullPolicy


def test_moved_tag_is_pulled_only_with_policy_always(space: E2eNamespace, open_registry: Registry) -> None:
    reference = open_registry.push("disks/moving:1", text_disk("first"))

    def content(name: str, policy: str) -> str:
        source = {"containerDisk": {"image": reference, "imagePullPolicy": policy}}
        # The same node, which has the first image by then.
        where = {"kubernetes.io/hostname": "node1"}
        machine = space.apply_vm(booting(name, drive("second", source, serial="second"), nodeSelector=where))
        machine.until_status("Running").answer()
        text = (machine.guest().read("second") or "").rstrip("\0")
        machine.discard()
        return text

    assert content("moving-first", "IfNotPresent") == "first"
    open_registry.push("disks/moving:1", text_disk("second"))
    assert content("moving-kept", "IfNotPresent") == "first"
    assert content("moving-never", "Never") == "first"
    assert content("moving-followed", "Always") == "second"


def test_missing_image_with_policy_never_is_reported(space: E2eNamespace, open_registry: Registry) -> None:
    reference = open_registry.push("disks/not-pulled:1", text_disk("never seen"))
    machine = space.apply_vm(idle_with_image("never", reference, imagePullPolicy="Never")).until_status("ErrImagePull")
    machine.until_condition_message("volume second", reference, "imagePullPolicy: Never")
    machine.discard()


# ---- what is wrong with an image


def test_missing_image_is_reported_with_volume_and_vm_starts_once_pushed(
    space: E2eNamespace, open_registry: Registry
) -> None:
    reference = open_registry.reference("disks/late:1")
    machine = space.apply_vm(idle_with_image("late", reference)).until_status(*PULLING)
    machine.until_condition_message(f"volume second: image {reference}: ", "not found")
    assert any(event.startswith("ErrImagePull: volume second: ") for event in machine.events()), machine.diagnostics()
    open_registry.push("disks/late:1", text_disk("here at last"))
    machine.until_status("Running", seconds=LATER)
    assert "Failure" not in conditions(machine.vm()), machine.diagnostics()
    machine.discard()


def test_invalid_image_reference_is_reported_in_status(space: E2eNamespace) -> None:
    reference = f"registry.example/disk@sha256:{'0' * 40}"
    machine = space.apply_vm(idle_with_image("misnamed", reference)).until_status("ErrImagePull")
    machine.until_condition_message("volume second", reference, "correct the image reference")
    assert conditions(machine.vm())["Failure"]["reason"] == "InvalidImageName"
    machine.discard()


def test_unreachable_registry_is_reported_with_image(space: E2eNamespace) -> None:
    machine = space.apply_vm(idle_with_image("unreached", "127.0.0.1:9/disk:1")).until_status(*PULLING)
    machine.until_condition_message("volume second: image 127.0.0.1:9/disk:1: ", "connection refused")
    machine.discard()


# ---- passwords


def test_private_registry_failure_names_missing_or_wrong_secret(space: E2eNamespace, locked_registry: Registry) -> None:
    reference = locked_registry.push("disks/private:1", text_disk("private"))
    space.apply(locked_registry.pull_secret("mine"), locked_registry.pull_secret("stale", password="changed since"))
    without = space.apply_vm(idle_with_image("no-secret", reference))
    stale = space.apply_vm(idle_with_image("stale-secret", reference, imagePullSecret="stale"))
    absent = space.apply_vm(idle_with_image("absent-secret", reference, imagePullSecret="absent"))
    for each in (without, stale, absent):
        each.until_status(*PULLING)
    subject = f"volume second: image {reference}: "
    without.until_condition_message(subject, "set imagePullSecret to a Secret with the registry's credentials")
    stale.until_condition_message(subject, "Secret stale has no credentials that this registry accepts")
    absent.until_condition_message(subject, "Unable to retrieve some image pull secrets (absent)")
    machine = space.apply_vm(idle_with_image("own-secret", reference, imagePullSecret="mine")).until_status("Running")
    # Create the missing Secret; change nothing else.
    space.apply(locked_registry.pull_secret("absent"))
    absent.until_status("Running", seconds=LATER)
    for each in (without, stale, absent, machine):
        each.discard()


def test_private_image_on_node_is_refused_without_pull_secret(
    space: E2eNamespace, locked_registry: Registry, kubectl: Kubectl
) -> None:
    gate = 'kubernetes_feature_enabled{name="KubeletEnsureSecretPulledImages"'
    metrics = kubectl("get", "--raw", "/api/v1/nodes/node1/proxy/metrics").splitlines()
    if not any(line.startswith(gate) and line.endswith(" 1") for line in metrics):
        pytest.skip("this kubelet gives a private image that is on its node to every pod")
    reference = locked_registry.push("disks/theirs:1", text_disk("theirs"))
    space.apply(locked_registry.pull_secret("theirs"))
    where = {"kubernetes.io/hostname": "node1"}
    second = drive("second", {"containerDisk": {"image": reference, "imagePullSecret": "theirs"}})
    owner = space.apply_vm(idle("owner", second, nodeSelector=where)).until_status("Running")
    assert reference in inside("node1", "ctr -n k8s.io images list -q")
    stranger_space = create_namespace(kubectl, "images-stranger")
    try:
        plain = drive("second", {"containerDisk": {"image": reference}})
        stranger = stranger_space.apply_vm(idle("stranger", plain, nodeSelector=where)).until_status(*PULLING)
        stranger.until_condition_message("volume second", reference, "imagePullSecret")
        never = drive("second", {"containerDisk": {"image": reference, "imagePullPolicy": "Never"}})
        stranger_space.apply_vm(idle("never", never, nodeSelector=where)).until_status(*PULLING)
    finally:
        stranger_space.clear()
    owner.discard()


def test_service_account_pull_secret_is_used_for_vm_without_one(space: E2eNamespace, locked_registry: Registry) -> None:
    reference = locked_registry.push("disks/account:1", text_disk("by the account"))
    inner = create_namespace(space.kubectl, "images-account")
    try:
        inner.apply(locked_registry.pull_secret("account"))
        inner.kubectl("patch", "serviceaccount", "default", "-p", '{"imagePullSecrets": [{"name": "account"}]}')
        inner.apply_vm(idle_with_image("by-account", reference)).until_status("Running")
    finally:
        inner.clear()
