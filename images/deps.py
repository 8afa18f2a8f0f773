"""The packages that building images and guests needs. Everything else is downloaded and only unpacked."""

from __future__ import annotations

PACKAGES = (
    "mmdebstrap",  # the base
    "debian-archive-keyring",  # its signatures
    "buildah",  # the Containerfile
    "gcc",
    "libc6-dev",  # /init of the tiny guest
    "binutils",
    "qemu-utils",  # qemu-img
    "qemu-system-x86",  # tests that boot the tiny guest
)
"""Debian packages, by name."""
