"""The Debian packages that the cluster, its build and the image builds need."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import images.deps
from cluster.console import ClusterError, ProgressConsole, ProgressStep
from cluster.paths import LOGS, private_dir

PACKAGES = (
    # the cluster itself
    "runc", "containernetworking-plugins", "iproute2", "iptables", "nftables",
    "conntrack", "dbus-daemon", "busybox-static", "util-linux", "procps", "curl", "openssl",
    # for a runc that supports user namespaces
    "libseccomp-dev",
    # building the pause image
    "gcc", "libc6-dev", "musl-tools",
    # the virtual environment: libvirt-python is compiled against the machine's libvirt
    "python3-venv", "python3-dev", "pkg-config", "libvirt-dev",
    # building images, guests and disks
    *images.deps.PACKAGES,
)  # fmt: skip

IMAGE_PACKAGES = (*images.deps.PACKAGES, "skopeo")
"""The packages for building images and pushing them to a registry, for an existing cluster."""

TEST_PACKAGES = (
    "libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients", "qemu-system-x86", "seabios", "libxml2-utils",
    "dnsmasq-base", "xfsprogs", "containerd",
    # terminal, SSH client and VNC viewer of a user
    "tmux", "openssh-client", "vncsnapshot",
    # a registry, and other tools that build and push images
    "docker-registry", "podman", "skopeo",
)  # fmt: skip
"""Additional packages for the tests: on this machine itself (tests/node, tests/golden), and users' programs."""

KUBECTL_PACKAGE = "kubernetes-client"
POLICY = Path("/usr/sbin/policy-rc.d")


def missing(*, tests: bool = False, only_images: bool = False) -> list[str]:
    """Packages of PACKAGES, with `tests` of TEST_PACKAGES, that are not installed; one for kubectl if there is none.

    With `only_images` only those of IMAGE_PACKAGES.
    """
    wanted = dict.fromkeys(IMAGE_PACKAGES if only_images else [*PACKAGES, *(TEST_PACKAGES if tests else ())])
    query = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *wanted],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    installed = {line.split()[0] for line in query.stdout.splitlines() if line.endswith(" installed")}
    absent = [name for name in wanted if name not in installed]
    return absent if shutil.which("kubectl") else [*absent, KUBECTL_PACKAGE]


def ensure(console: ProgressConsole, *, tests: bool = False, only_images: bool = False) -> None:
    """Install missing packages and report it. Errors: ClusterError when apt-get fails or the user is not root.

    Without dpkg nothing is installed; images can still be built with the tools that exist.
    """
    absent = [] if only_images and not shutil.which("dpkg-query") else missing(tests=tests, only_images=only_images)
    with console.step("Debian packages") as step:
        step.note = "all there" if not absent else f"installing {len(absent)}"
        if not absent:
            return
        if os.geteuid() != 0:
            raise ClusterError(f"packages are missing: {' '.join(absent)}", remedy="run this as root")
        console.say(f"  · installing {' '.join(absent)}")
        log = private_dir(LOGS) / "apt.log"
        with _no_services():
            _apt(["update"], log, step)
            _apt(["install", "--yes", "--no-install-recommends", *absent], log, step)


def _apt(arguments: list[str], log: Path, step: ProgressStep) -> None:
    """Run apt-get, which reports its progress on a separate descriptor (apt's README.progress-reporting)."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    read, write = os.pipe()
    options = ["-o", f"APT::Status-Fd={write}", "-o", "DPkg::Lock::Timeout=120"]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            ["apt-get", *options, *arguments],
            env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, pass_fds=[write],
        )  # fmt: skip
        os.close(write)
        follower = threading.Thread(target=_follow, args=(read, arguments[0], step), daemon=True)
        follower.start()
        status = process.wait()
        follower.join(1)
    if status != 0:
        raise ClusterError(
            f"apt-get {arguments[0]} failed",
            log=log,
            remedy="check that this machine reaches its Debian archive, fix what apt reports, and run this again",
        )


def _follow(descriptor: int, verb: str, step: ProgressStep) -> None:
    """Turn lines `pmstatus:PACKAGE:PERCENT:WORDS` and `dlstatus:NUMBER:PERCENT:WORDS` into progress."""
    with os.fdopen(descriptor, errors="replace") as lines:
        for line in lines:
            kind, _, rest = line.partition(":")
            words = rest.split(":", 2)
            if kind in ("pmstatus", "dlstatus") and len(words) == 3:
                what = "downloading" if kind == "dlstatus" else verb
                step.progress(f"{what} {words[1].split('.')[0]} %")


@contextmanager
def _no_services() -> Iterator[None]:
    """Keep the installed packages from starting their daemons: the cluster starts its own, in its own namespaces."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
