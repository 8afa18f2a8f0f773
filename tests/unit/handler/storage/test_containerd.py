"""Image references, pull policies and chain IDs."""

import hashlib

import pytest

from api.errors import ImagePullFailed
from handler.storage import containerd


@pytest.mark.parametrize("reference", ["a", " a:1 ", "localhost:5000/a/b:v1", "r.test/a@sha256:" + "0" * 64])
def test_image_references(reference):
    assert containerd.checked(reference) == reference.strip()


@pytest.mark.parametrize("reference", ["", " ", "a b", "$(reboot)", "a\nb", "-x", "a" * 600, "../etc"])
def test_invalid_image_references_are_rejected(reference):
    with pytest.raises(ImagePullFailed, match="not an image reference"):
        containerd.checked(reference)


@pytest.mark.parametrize(
    ("image", "policy", "expected"),
    [("a:1", None, "IfNotPresent"), ("a", None, "Always"), ("a:latest", None, "Always"), ("a", "Never", "Never"),
     ("a@sha256:" + "0" * 64, None, "IfNotPresent"), ("sha256:" + "a" * 64, None, "IfNotPresent"),
     ("r.test:5000/a", None, "Always"), ("r.test:5000/a:2", None, "IfNotPresent")],
)  # fmt: skip
def test_pull_policy(image, policy, expected):
    assert containerd.pull_policy(image, policy) == expected


def test_chain_id():
    first, second = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    assert containerd.chain_id([first]) == first
    expected = hashlib.sha256(f"{first} {second}".encode()).hexdigest()
    assert containerd.chain_id([first, second]) == f"sha256:{expected}"
