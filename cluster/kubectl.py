"""kubectl, preferably the one that was built with the cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from cluster import binaries
from cluster.console import ClusterError
from cluster.paths import VENV


class Kubectl:
    """kubectl against one kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.program = program()

    def __call__(self, *args: str, check: bool = True, stdin: str | None = None) -> str:
        """Run and return standard output. Raises ClusterError with kubectl's own message when it fails and `check`
        is set."""
        done = subprocess.run(
            [self.program, f"--kubeconfig={self.kubeconfig}", *args],
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
        )
        if check and done.returncode:
            raise ClusterError(f"kubectl {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def json(self, *args: str) -> dict[str, object] | None:
        """`get … -o json`; None if there is no such object."""
        text = self(*args, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None


def program() -> str:
    """The kubectl to call: that of the cluster's release if it is built, else the machine's.

    Errors: ClusterError when there is neither.
    """
    built = binaries.find(binaries.KUBERNETES)
    if built is not None:
        return str(built / "kubectl")
    found = shutil.which("kubectl")
    if found is None:
        raise ClusterError(
            "no kubectl on this machine", remedy="install one, or run 'python -m cluster build kubernetes'"
        )
    return found


def link() -> None:
    """Link the built kubectl beside hyperctl in the virtual environment, for users."""
    target = binaries.folder(binaries.KUBERNETES) / "kubectl"
    place = VENV / "bin" / "kubectl"
    if not place.parent.is_dir() or (place.is_symlink() and place.readlink() == target):
        return
    place.unlink(missing_ok=True)
    place.symlink_to(target)
