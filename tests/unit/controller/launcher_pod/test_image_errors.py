"""Messages about image pull errors: volume, image, the kubelet's error, remedy."""

import pytest

from api.kubevirt.vmi import VirtualMachineInstanceSpec
from controller.launcher_pod import image_errors
from tests.unit.controller.objects import vmi

LAUNCHER = "registry.example/launcher:1"


def spec(*disks: tuple[str, str, str | None], kernel: str | None = None) -> VirtualMachineInstanceSpec:
    domain: dict[str, object] = {"devices": {}, "memory": {"guest": "64Mi"}}
    if kernel:
        domain["firmware"] = {"kernelBoot": {"container": {"image": kernel, "kernelPath": "/vmlinuz"}}}
    volumes = [
        {"name": name, "containerDisk": {"image": image, **({"imagePullSecret": secret} if secret else {})}}
        for name, image, secret in disks
    ]
    return vmi(spec={"domain": domain, "volumes": volumes}).spec


NOT_FOUND = 'failed to pull and unpack image "{0}": failed to resolve reference "{0}": {0}: not found'
DENIED = 'failed to pull and unpack image "{0}": failed to authorize: unexpected status: 401 Unauthorized'
NEVER = 'Container image "{0}" is not present with pull policy of Never'
INVALID = 'Failed to apply default image tag "{0}": couldn\'t parse image name "{0}": invalid reference format'
ROOT, DATA = ("root", "r.example/guest:1", None), ("data", "r.example/other:2", "mine")


@pytest.mark.parametrize(
    "reason, words, reference, disks, begins, ends",
    [
        ("ErrImagePull", NOT_FOUND, ROOT[1], [ROOT, DATA], "volume root: image r.example/guest:1: failed", "not found"),
        ("ErrImagePull", NOT_FOUND, DATA[1], [ROOT, DATA], "volume data: image r.example/other:2: ", "not found"),
        ("ErrImagePull", DENIED, ROOT[1], [ROOT, DATA], "volume root: image ", "registry's credentials"),
        ("ErrImagePull", DENIED, DATA[1], [ROOT, DATA], "volume data: ", "Secret mine has no credentials that this"),
        ("ErrImagePull", DENIED, LAUNCHER, [ROOT], "the launcher: image registry.example/launcher:1: ", "KubeVirt"),
        ("ErrImageNeverPull", NEVER, ROOT[1], [ROOT, DATA], "volume root: image ", "imagePullPolicy: Never"),
        ("InvalidImageName", INVALID, "UPPER/x", [("a", "UPPER/x", None)], "volume a: image UPPER/x: ", "reference"),
        # Two volumes with one image; one reference that is a suffix or prefix of another.
        ("ErrImagePull", NOT_FOUND, ROOT[1], [ROOT, ("b", ROOT[1], None)], "volume root, volume b: image ", "found"),
        ("ErrImagePull", NOT_FOUND, "r.x/a:12", [("a", "r.x/a:1", None), ("b", "r.x/a:12", None)], "volume b: ", ""),
        ("ErrImagePull", NOT_FOUND, "r.x/a:1", [("a", "a:1", None), ("b", "r.x/a:1", None)], "volume b: ", ""),
        ("ErrImagePull", NOT_FOUND, "r.x/a/b:1", [("a", "r.x/a", None), ("b", "r.x/a/b:1", None)], "volume b: ", ""),
        # A short name normalized by the runtime.
        ("ErrImagePull", NOT_FOUND, "docker.io/library/a:latest", [("a", "a", None), ROOT], "volume a: image a: ", ""),
        # A message without an image name is about the only image, or is left unchanged.
        ("RegistryUnavailable", "no route to host", "", [ROOT], "volume root: image r.example/guest:1: no route", ""),
        ("RegistryUnavailable", "no route to host", "", [ROOT, DATA], "no route to host", ""),
    ],
)
def test_message_names_volume_image_and_remedy(
    reason: str, words: str, reference: str, disks: list[tuple[str, str, str | None]], begins: str, ends: str
) -> None:
    told = image_errors.explained(reason, words.format(reference), spec(*disks), LAUNCHER)
    assert told.startswith(begins) and ends in told[len(begins) - 1 :], told
    back_off = f'Back-off pulling image "{reference}": {reason}: {words.format(reference)}'
    assert image_errors.explained("ImagePullBackOff", back_off, spec(*disks), LAUNCHER).startswith(begins)


def test_kernel_boot_image_is_named_by_field() -> None:
    told = image_errors.explained("ErrImagePull", NOT_FOUND.format("r.x/k:1"), spec(ROOT, kernel="r.x/k:1"), LAUNCHER)
    assert told.startswith("firmware.kernelBoot.container: image r.x/k:1: ")


def test_missing_pull_secret_is_added_to_message() -> None:
    words = "Unable to retrieve some image pull secrets (mine); attempting to pull the image may not succeed."
    warning = (image_errors.REASON_SECRET, words)
    told = image_errors.explained("ErrImagePull", DENIED.format(DATA[1]), spec(DATA), LAUNCHER, warning)
    assert "401 Unauthorized" in told and told.endswith(words)


def test_registry_text_is_bounded_and_printable() -> None:
    told = image_errors.explained("ErrImagePull", "\x1b[2J" + "denied " * 1000, spec(ROOT), LAUNCHER)
    assert "\x1b" not in told and len(told) <= image_errors.MESSAGE_LIMIT
    assert told.endswith("set imagePullSecret to a Secret with the registry's credentials"), "the remedy is not cut off"
