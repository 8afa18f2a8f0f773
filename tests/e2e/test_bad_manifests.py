"""Invalid manifests: the error is visible to the user and names the field or object.

A manifest is refused by kubectl or the API server, or accepted; then a condition of the VM and an Event report it.
In both cases the corrected manifest, applied on top, runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.e2e.manifests import (
    Drive,
    booting,
    claim,
    cloud_init,
    drive,
    halting,
    idle,
    persistent_claim,
    secret,
    service,
)
from tests.e2e.processes import wait_for_process
from tests.e2e.support import ROOT, E2eNamespace, Json, KubectlError, VmUnderTest, image, project
from tests.waiting import wait_for

SEEDS = ROOT / "tests" / "golden" / "seed-manifests"


def domain_of(manifest: Json) -> Json:
    domain: Json = manifest["spec"]["template"]["spec"]["domain"]
    return domain


def apply_and_expect_message(
    space: E2eNamespace, manifest: Json, *words: str, seconds: float = 60
) -> VmUnderTest | None:
    """Apply; assert that the refusal, or else a condition of the VM and an Event, hold the words. None: refused."""
    name = manifest["metadata"]["name"]
    try:
        machine = space.apply_vm(manifest)
    except KubectlError as refusal:
        said = str(refusal)
        assert all(word.lower() in said.lower() for word in words), f"{words} are not in: {said}"
        assert space.kubectl.get("vm", name) is None, "the refused VM exists"
        return None
    machine.until_condition_message(*words, seconds=seconds)
    wait_for(
        lambda: [event for event in machine.events() if all(word.lower() in event.lower() for word in words)],
        f"an Event of {name} contains: {', '.join(words)}",
        explain=machine.diagnostics,
    )
    return machine


# ---- errors that are visible in the manifest


def disk_without_volume(bad: Json) -> None:
    domain_of(bad)["devices"]["disks"].append({"name": "orphan", "disk": {"bus": "virtio"}})


def two_disks_of_one_name(bad: Json) -> None:
    domain_of(bad)["devices"]["disks"].append({"name": "root", "disk": {"bus": "sata"}})


def interface_without_network(bad: Json) -> None:
    domain_of(bad)["devices"]["interfaces"] = [{"name": "loose", "masquerade": {}}]


def unknown_field(bad: Json) -> None:
    domain_of(bad)["devices"]["diskz"] = []


def unknown_field_deep_down(bad: Json) -> None:
    bad["spec"]["template"]["spec"]["volumes"][0]["containerDisk"]["imagine"] = "x"


def no_memory(bad: Json) -> None:
    del domain_of(bad)["memory"]


def bad_quantity(bad: Json) -> None:
    domain_of(bad)["memory"]["guest"] = "64 megabytes"


def dots_in_a_disks_path(bad: Json) -> None:
    bad["spec"]["template"]["spec"]["volumes"][0]["containerDisk"]["path"] = "/disk/../../etc/passwd"


def dots_in_a_kernels_path(bad: Json) -> None:
    container = {"image": image("guest-tiny-kernel"), "kernelPath": "/boot/../../vmlinuz", "initrdPath": "/boot/initrd"}
    domain_of(bad)["firmware"] = {"kernelBoot": {"container": container}}


def unknown_machine(bad: Json) -> None:
    domain_of(bad)["machine"] = {"type": "pc-q35-0.0"}


def both_running_and_strategy(bad: Json) -> None:
    bad["spec"]["running"] = True


def unknown_strategy(bad: Json) -> None:
    bad["spec"]["runStrategy"] = "Sometimes"


def feature_not_there_yet(bad: Json) -> None:
    domain_of(bad)["devices"]["gpus"] = [{"name": "gpu1", "deviceName": "example.com/gpu"}]


def binding_not_there_yet(bad: Json) -> None:
    domain_of(bad)["devices"]["interfaces"] = [{"name": "default", "slirp": {}}]
    bad["spec"]["template"]["spec"]["networks"] = [{"name": "default", "pod": {}}]


def label_with_shell_characters(bad: Json) -> None:
    bad["spec"]["template"]["metadata"]["labels"]["purpose"] = "$(touch /tmp/e2e-was-here); '\"`"


def hostname_with_markup(bad: Json) -> None:
    bad["spec"]["template"]["spec"]["hostname"] = "<name>&amp;"


def name_of_a_disk_with_markup(bad: Json) -> None:
    for entry in (domain_of(bad)["devices"]["disks"][0], bad["spec"]["template"]["spec"]["volumes"][0]):
        entry["name"] = "<disk/>"


def title(spoil: Callable[[Json], None]) -> str:
    return spoil.__name__.replace("_", "-")


def manifest_with_error(spoil: Callable[[Json], None]) -> Json:
    """A manifest that would run, except for one error."""
    bad = idle(title(spoil))
    spoil(bad)
    return bad


FAULTS: list[tuple[Callable[[Json], None], tuple[str, ...]]] = [
    (disk_without_volume, ("orphan", "disks[1]")),
    (two_disks_of_one_name, ("disks[1]", "root")),
    (interface_without_network, ("loose", "interfaces[0]")),
    (unknown_field, ("diskz",)),
    (unknown_field_deep_down, ("imagine",)),
    (no_memory, ("memory",)),
    (bad_quantity, ("memory.guest",)),
    (dots_in_a_disks_path, ("containerDisk.path",)),
    (dots_in_a_kernels_path, ("kernelPath",)),
    (both_running_and_strategy, ("running", "runStrategy")),
    (unknown_machine, ("pc-q35-0.0",)),
    (unknown_strategy, ("runStrategy", "Sometimes")),
    (feature_not_there_yet, ("devices.gpus",)),
    (binding_not_there_yet, ("interfaces[0].slirp",)),
    (label_with_shell_characters, ("labels",)),
    (hostname_with_markup, ("hostname",)),
    (name_of_a_disk_with_markup, ("disks[0].name",)),
]


@pytest.mark.parametrize("spoil, words", FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_invalid_manifest_is_refused_with_field(
    space: E2eNamespace, spoil: Callable[[Json], None], words: tuple[str, ...]
) -> None:
    machine = apply_and_expect_message(space, manifest_with_error(spoil), *words)
    assert not Path("/tmp/e2e-was-here").exists()
    if machine is not None and spoil is not unknown_machine:  # which machines there are, only QEMU knows
        assert not machine.pods(), "a pod was created from an invalid manifest"
        assert machine.status() == "Stopped", machine.diagnostics()


def test_refused_manifest_stores_no_vm_and_corrected_one_is_accepted(space: E2eNamespace) -> None:
    """All manifests above are refused; a refused manifest must not block its corrected version."""
    corrected = []
    for spoil, _ in FAULTS:
        with pytest.raises(KubectlError):
            space.apply(manifest_with_error(spoil))
        assert space.existing_vm(title(spoil)).vm() is None
        corrected.append(idle(title(spoil), run="Halted"))
    space.apply(*corrected)
    last = space.existing_vm(title(FAULTS[-1][0]))
    last.run("Always")
    last.until_status("Running", seconds=120)
    for spoil, _ in FAULTS:
        space.existing_vm(title(spoil)).discard()


def test_manifest_with_three_errors_is_refused_with_all_three(space: E2eNamespace) -> None:
    bad = idle("thrice")
    disk_without_volume(bad)
    interface_without_network(bad)
    dots_in_a_disks_path(bad)
    machine = apply_and_expect_message(space, bad, "orphan", "loose", "containerDisk.path")
    if machine is not None:
        machine.discard()


def test_empty_manifest_is_refused(space: E2eNamespace) -> None:
    apply_and_expect_message(
        space, {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "void"}}, "spec"
    )


# ---- references to missing objects


def missing_image() -> str:
    return image("guest-halt").rpartition("/")[0] + "/no-such-guest:1"


def test_missing_image_is_named_in_condition_and_event(space: E2eNamespace) -> None:
    machine = space.apply_vm(idle("unpictured", drive("second", {"containerDisk": {"image": missing_image()}})))
    machine.until_status("ErrImagePull", "ImagePullBackOff")
    machine.until_condition_message("no-such-guest:1")
    assert any("no-such-guest:1" in event for event in machine.events()), machine.diagnostics()
    machine.discard()


def test_image_without_disk_is_named_in_condition(space: E2eNamespace) -> None:
    volume = drive("hollow", {"containerDisk": {"image": image("guest-no-disk")}})
    machine = apply_and_expect_message(space, idle("diskless", volume), "hollow", "/disk")
    assert machine
    machine.discard()


def test_disk_of_unknown_format_is_named_in_condition(space: E2eNamespace) -> None:
    volume = drive("garbage", {"containerDisk": {"image": image("guest-not-a-disk")}})
    machine = apply_and_expect_message(space, idle("imageless", volume), "garbage")
    assert machine
    machine.discard()


def test_missing_path_in_image_is_named_in_condition(space: E2eNamespace) -> None:
    volume = drive("elsewhere", {"containerDisk": {"image": image("guest-halt"), "path": "/disk/none.img"}})
    machine = apply_and_expect_message(space, idle("pathless", volume), "elsewhere", "/disk/none.img")
    assert machine
    machine.discard()


def named_claim(space: E2eNamespace) -> tuple[Drive, list[Json]]:
    storage_class = f"late-{space.name}"
    project("cluster", "pv", f"{space.name}-absent", "node1", "64Mi", "--storage-class", storage_class)
    return claim("data", "absent"), [persistent_claim("absent", "64Mi", storage_class)]


def named_secret(space: E2eNamespace) -> tuple[Drive, list[Json]]:
    return cloud_init(secretRef={"name": "absent"}), [secret("absent", userdata="#cloud-config\n")]


def named_secret_volume(space: E2eNamespace) -> tuple[Drive, list[Json]]:
    return drive("files", {"secret": {"secretName": "absent-files"}}), [secret("absent-files", key="value")]


@pytest.mark.parametrize(
    "naming, word", [(named_claim, "absent"), (named_secret, "absent"), (named_secret_volume, "absent-files")]
)
def test_missing_object_is_named_and_vm_starts_once_created(
    space: E2eNamespace, naming: Callable[[E2eNamespace], tuple[Drive, list[Json]]], word: str
) -> None:
    volume, late = naming(space)
    machine = apply_and_expect_message(space, idle(naming.__name__.replace("_", "-"), volume), word)
    assert machine
    space.apply(*late)
    # The kubelet tries mounts again with pauses of up to two minutes.
    machine.until_status("Running", seconds=180)
    machine.discard()
    for each in late:
        space.kubectl("delete", each["kind"], each["metadata"]["name"])
    space.kubectl("delete", "pv", f"{space.name}-absent", "--ignore-not-found")


# ---- special characters that are allowed


def test_special_characters_reach_guest_and_pod_unchanged(space: E2eNamespace) -> None:
    strange = "</annotation>]]><!-- & \"'`$(touch /tmp/e2e-was-here)` \\ \u2603"
    user_data = f"#cloud-config\nhostname: strange\n# {strange}\n"
    machine = space.apply_vm(
        booting("strange", cloud_init(user_data), annotations={"e2e.test/words": strange}, hostname="strange")
    ).until_status("Running")
    told = machine.answer()
    assert told["cloudInit"]["user-data"] == user_data
    assert machine.pod()["metadata"]["annotations"]["e2e.test/words"] == strange
    assert not Path("/tmp/e2e-was-here").exists()
    machine.discard()


# ---- seed manifests from users' documents


def seed(name: str) -> Json:
    manifest: Json = yaml.safe_load((SEEDS / name).read_text())
    return manifest


def test_seed_manifest_with_cloud_init_runs_unchanged(space: E2eNamespace) -> None:
    machine = space.apply_vm(seed("vm-cloudinit.yaml")).until_status("Running")
    machine.discard()
    # No operating system, so the power button has no effect: do not wait for the whole grace period.
    wait_for_process(machine.pod(), lambda process: process.is_qemu).kill()


def test_seed_manifest_with_masquerade_names_missing_image_and_runs_with_existing_one(space: E2eNamespace) -> None:
    manifest = seed("vm-masquerade-containerdisk.yaml")
    wanted = manifest["spec"]["template"]["spec"]["volumes"][0]["containerDisk"]["image"]
    machine = space.apply_vm(manifest)
    machine.until_status("ErrImagePull", "ImagePullBackOff")
    machine.until_condition_message(wanted)
    machine.delete()
    manifest["spec"]["template"]["spec"]["volumes"][0]["containerDisk"]["image"] = image("guest-tiny")
    space.apply(service("dogood", "dogood"))
    machine = space.apply_vm(manifest).until_status("Running")
    assert machine.answer()["hostname"] == "dogood-vm"
    machine.discard()


def test_seed_manifest_without_volumes_is_refused_and_runs_once_completed(space: E2eNamespace) -> None:
    manifest = seed("vm-running-false.yaml")
    incomplete = apply_and_expect_message(space, manifest, "rootfs", "default")
    if incomplete is not None:
        assert not incomplete.vmi()
    spec = manifest["spec"]["template"]["spec"]
    spec["volumes"] = [{**halting().volume, "name": "rootfs"}]
    spec["networks"] = [{"name": "default", "pod": {}}]
    machine = space.apply_vm(manifest)
    machine.until_status("Stopped")
    machine.patch({"spec": {"running": True, "template": {"spec": {"terminationGracePeriodSeconds": 2}}}})
    machine.until_status("Running")
    assert machine.pod()["metadata"]["labels"]["team"] == "Tiger"
    machine.discard()


@pytest.mark.parametrize("name, word", [("vm-datavolumetemplate.yaml", "template")])
def test_seed_manifest_with_unsupported_field_is_refused_with_its_name(
    space: E2eNamespace, name: str, word: str
) -> None:
    machine = apply_and_expect_message(space, seed(name), word)
    if machine is not None:
        assert not machine.pods()
        machine.discard()
