"""containerDisks and kernels out of a registry: the kubelet pulls them as image volumes; what it says is passed on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.archive import ArchiveEntry
from tests.e2e.manifests import booting, drive, idle, virtual_machine
from tests.e2e.registry import Registry, inside, serving
from tests.e2e.support import (
    EXISTING,
    SYSTEM,
    Json,
    Kubectl,
    Machine,
    Space,
    conditions,
    new_space,
    project,
)

PULLING = ("ErrImagePull", "ImagePullBackOff")
# The kubelet tries again after 10 s, 20 s, 40 s …
LATER = 120.0


@pytest.fixture(scope="module")
def open_registry(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that gives everything to everybody."""
    if EXISTING:
        pytest.skip("needs nodes of its own")
    with serving(space, "open", tmp_path_factory.mktemp("open")) as registry:
        yield registry


@pytest.fixture(scope="module")
def locked_registry(space: Space, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that asks for a password."""
    if EXISTING:
        pytest.skip("needs nodes of its own")
    with serving(space, "locked", tmp_path_factory.mktemp("locked"), locked=True) as registry:
        yield registry


def text_disk(text: str, path: str = "disk/text.img") -> list[ArchiveEntry]:
    """A raw disk with a text at its start; the guest reads it."""
    return [ArchiveEntry(path, b"HLMARK1\n" + text.encode().ljust(8184, b"\0"), mode=0o444)]


def pulled(name: str, reference: str, **source: object) -> Json:
    """A machine that only has to exist, with a second disk out of an image."""
    return idle(name, drive("second", {"containerDisk": {"image": reference, **source}}))


def archive(role: str) -> Path:
    """The archive of an image that the project has built."""
    listing: dict[str, dict[str, str]] = json.loads(project("images", "list", "--json"))
    return Path(listing[role]["archive"])


# ---- image volumes


def test_a_disk_comes_as_an_image_volume_and_no_component_has_a_runtimes_socket(
    space: Space, open_registry: Registry
) -> None:
    reference = open_registry.push_archive("guests/tiny:1", archive("guest-tiny"))
    root = drive("root", {"containerDisk": {"image": reference}})
    machine = space.machine(virtual_machine("pulled", root)).until_status("Running")
    assert machine.answer()["bootId"]
    volumes = {each["name"]: each for each in machine.pod()["spec"]["volumes"]}
    assert volumes["v-root"]["image"]["reference"] == reference
    for workload in space.kubectl.within(SYSTEM).items("daemonsets,deployments"):
        mounted = [
            each.get("hostPath", {}).get("path", "") for each in workload["spec"]["template"]["spec"].get("volumes", [])
        ]
        assert not [path for path in mounted if "containerd" in path or path in ("/run", "/var/run", "/")], mounted
    machine.discard()


def test_a_disk_may_lie_anywhere_in_an_image(space: Space, open_registry: Registry) -> None:
    reference = open_registry.push("disks/elsewhere:1", text_disk("found elsewhere", "data/deep/elsewhere.raw"))
    second = drive(
        "second", {"containerDisk": {"image": reference, "path": "/data/deep/elsewhere.raw"}}, serial="second"
    )
    machine = space.machine(booting("elsewhere", second)).until_status("Running")
    machine.answer()
    assert (machine.guest().read("second") or "").startswith("found elsewhere")
    machine.discard()
    wrong = space.machine(pulled("nowhere", reference, path="/data/none.raw"))
    wrong.until_condition_tells("second", "/data/none.raw")
    wrong.discard()


def test_a_kernel_comes_out_of_a_registry_with_a_password(space: Space, locked_registry: Registry) -> None:
    reference = locked_registry.push_archive("guests/kernel:1", archive("guest-tiny-kernel"))
    space.apply(locked_registry.pull_secret("for-kernels"))
    files = {"kernelPath": "/boot/vmlinuz", "initrdPath": "/boot/initrd"}

    def machine(name: str, **container: str) -> Machine:
        boot = {
            "kernelArgs": "console=ttyS0 no_timer_check quiet",
            "container": {"image": reference, **files, **container},
        }
        return space.machine(virtual_machine(name, domain={"firmware": {"kernelBoot": boot}}))

    refused = machine("kernel-refused").until_status(*PULLING)
    refused.until_condition_tells("firmware.kernelBoot.container", reference, "imagePullSecret")
    refused.discard()
    direct = machine("kernel", imagePullSecret="for-kernels").until_status("Running")
    assert direct.answer()["bootId"]
    direct.discard()


# ---- imagePullPolicy


def test_the_pull_policy_decides_whether_a_moved_tag_is_followed(space: Space, open_registry: Registry) -> None:
    reference = open_registry.push("disks/moving:1", text_disk("first"))

    def content(name: str, policy: str) -> str:
        source = {"containerDisk": {"image": reference, "imagePullPolicy": policy}}
        # The same node, which has the first image by then.
        where = {"kubernetes.io/hostname": "node1"}
        machine = space.machine(booting(name, drive("second", source, serial="second"), nodeSelector=where))
        machine.until_status("Running").answer()
        text = (machine.guest().read("second") or "").rstrip("\0")
        machine.discard()
        return text

    assert content("moving-first", "IfNotPresent") == "first"
    open_registry.push("disks/moving:1", text_disk("second"))
    assert content("moving-kept", "IfNotPresent") == "first"
    assert content("moving-never", "Never") == "first"
    assert content("moving-followed", "Always") == "second"


def test_never_pulling_what_is_not_there_is_said(space: Space, open_registry: Registry) -> None:
    reference = open_registry.push("disks/not-pulled:1", text_disk("never seen"))
    machine = space.machine(pulled("never", reference, imagePullPolicy="Never")).until_status("ErrImagePull")
    machine.until_condition_tells("volume second", reference, "imagePullPolicy: Never")
    machine.discard()


# ---- what is wrong with an image


def test_an_image_that_is_not_there_is_named_with_its_volume_and_waited_for(
    space: Space, open_registry: Registry
) -> None:
    reference = open_registry.reference("disks/late:1")
    machine = space.machine(pulled("late", reference)).until_status(*PULLING)
    machine.until_condition_tells(f"volume second: image {reference}: ", "not found")
    assert any(event.startswith("ErrImagePull: volume second: ") for event in machine.events()), machine.story()
    open_registry.push("disks/late:1", text_disk("here at last"))
    machine.until_status("Running", seconds=LATER)
    assert "Failure" not in conditions(machine.vm()), machine.story()
    machine.discard()


def test_a_reference_that_only_a_kubelet_can_judge_is_refused_in_the_status(space: Space) -> None:
    reference = f"registry.example/disk@sha256:{'0' * 40}"
    machine = space.machine(pulled("misnamed", reference)).until_status("ErrImagePull")
    machine.until_condition_tells("volume second", reference, "correct the image reference")
    assert conditions(machine.vm())["Failure"]["reason"] == "InvalidImageName"
    machine.discard()


def test_a_registry_that_is_not_reached_is_named(space: Space) -> None:
    machine = space.machine(pulled("unreached", "127.0.0.1:9/disk:1")).until_status(*PULLING)
    machine.until_condition_tells("volume second: image 127.0.0.1:9/disk:1: ", "connection refused")
    machine.discard()


# ---- passwords


def test_a_registry_that_asks_for_a_password_is_told_apart_by_what_is_missing(
    space: Space, locked_registry: Registry
) -> None:
    reference = locked_registry.push("disks/private:1", text_disk("private"))
    space.apply(locked_registry.pull_secret("mine"), locked_registry.pull_secret("stale", password="changed since"))
    without = space.machine(pulled("no-secret", reference))
    stale = space.machine(pulled("stale-secret", reference, imagePullSecret="stale"))
    absent = space.machine(pulled("absent-secret", reference, imagePullSecret="absent"))
    for each in (without, stale, absent):
        each.until_status(*PULLING)
    subject = f"volume second: image {reference}: "
    without.until_condition_tells(subject, "set imagePullSecret to a Secret with the registry's credentials")
    stale.until_condition_tells(subject, "Secret stale has no credentials that this registry accepts")
    absent.until_condition_tells(subject, "Unable to retrieve some image pull secrets (absent)")
    machine = space.machine(pulled("own-secret", reference, imagePullSecret="mine")).until_status("Running")
    # The Secret that was missing comes: nothing else is changed.
    space.apply(locked_registry.pull_secret("absent"))
    absent.until_status("Running", seconds=LATER)
    for each in (without, stale, absent, machine):
        each.discard()


def test_what_others_pulled_with_a_password_is_not_to_be_had_without(
    space: Space, locked_registry: Registry, kubectl: Kubectl
) -> None:
    gate = 'kubernetes_feature_enabled{name="KubeletEnsureSecretPulledImages"'
    metrics = kubectl("get", "--raw", "/api/v1/nodes/node1/proxy/metrics").splitlines()
    if not any(line.startswith(gate) and line.endswith(" 1") for line in metrics):
        pytest.skip("this kubelet gives a private image that is on its node to every pod")
    reference = locked_registry.push("disks/theirs:1", text_disk("theirs"))
    space.apply(locked_registry.pull_secret("theirs"))
    where = {"kubernetes.io/hostname": "node1"}
    second = drive("second", {"containerDisk": {"image": reference, "imagePullSecret": "theirs"}})
    owner = space.machine(idle("owner", second, nodeSelector=where)).until_status("Running")
    assert reference in inside("node1", "ctr -n k8s.io images list -q")
    stranger_space = new_space(kubectl, "images-stranger")
    try:
        plain = drive("second", {"containerDisk": {"image": reference}})
        stranger = stranger_space.machine(idle("stranger", plain, nodeSelector=where)).until_status(*PULLING)
        stranger.until_condition_tells("volume second", reference, "imagePullSecret")
        never = drive("second", {"containerDisk": {"image": reference, "imagePullPolicy": "Never"}})
        stranger_space.machine(idle("never", never, nodeSelector=where)).until_status(*PULLING)
    finally:
        stranger_space.clear()
    owner.discard()


def test_the_service_accounts_secrets_serve_vms_that_name_none(space: Space, locked_registry: Registry) -> None:
    reference = locked_registry.push("disks/account:1", text_disk("by the account"))
    inner = new_space(space.kubectl, "images-account")
    try:
        inner.apply(locked_registry.pull_secret("account"))
        inner.kubectl("patch", "serviceaccount", "default", "-p", '{"imagePullSecrets": [{"name": "account"}]}')
        inner.machine(pulled("by-account", reference)).until_status("Running")
    finally:
        inner.clear()
