"""Runs while the launcher's image is built: has libvirt query QEMU's capabilities, and stores its cache.

    bake_capabilities.py TARGET

TARGET becomes the content of `$XDG_CACHE_HOME/libvirt`. The daemon runs as 107:107 in session mode, as in the pod,
because libvirt's result depends on access to /dev/kvm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

USER = 107
WAIT_SECONDS = 30
QUESTION = """
import sys, libvirt
connection = libvirt.open("qemu+unix:///session?socket=" + sys.argv[1])
connection.getDomainCapabilities(None, "x86_64", "q35", "qemu")
connection.close()
"""


def _wait_for(path: Path, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not path.exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"libvirtd created no socket at {path}")
        time.sleep(0.02)


def bake(home: Path, target: Path) -> None:
    """Run the daemon in `home`, query it once, and copy its cache to `target`, world-readable."""
    environment = {"PATH": "/usr/sbin:/usr/bin", "HOME": str(home)}
    for name in ("runtime", "config", "cache", "data"):
        environment[f"XDG_{name.upper()}_{'DIR' if name == 'runtime' else 'HOME'}"] = str(home / name)
        (home / name / "libvirt").mkdir(parents=True)
    for path in (home, *home.rglob("*")):
        os.chown(path, USER, USER)
    socket = home / "runtime/libvirt/libvirt-sock"
    daemon = subprocess.Popen(["/usr/sbin/libvirtd"], env=environment, user=USER, group=USER, extra_groups=())
    try:
        _wait_for(socket, daemon)
        subprocess.run(
            [sys.executable, "-c", QUESTION, str(socket)], env=environment, user=USER, group=USER, extra_groups=(),
            check=True, timeout=WAIT_SECONDS,
        )  # fmt: skip
    finally:
        daemon.terminate()
        daemon.wait(WAIT_SECONDS)
    answers = list((home / "cache/libvirt/qemu/cache/capabilities").glob("*.xml"))
    if not answers:
        raise SystemExit("libvirt cached no capabilities")
    shutil.copytree(home / "cache/libvirt/qemu/cache", target / "qemu/cache")
    for path in (target, *target.rglob("*")):
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        bake(Path(folder), Path(sys.argv[1]))
