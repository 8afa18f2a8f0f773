"""The manifests as GitOps tools use them: applied again, in either way, nothing differs and nothing conflicts."""

from __future__ import annotations

import subprocess

import pytest

from cluster.paths import RUN
from tests.e2e.support import EXISTING, KUBECONFIG

pytestmark = pytest.mark.skipif(EXISTING, reason="the names of the deployed images are its administrator's")

OVERLAY = str(RUN / "deploy")
"""What `make up` applied: manifests/ with the names of the built images."""
SERVER_SIDE = ("--server-side", "--field-manager=e2e-gitops")


def kubectl(verb: str, *args: str) -> subprocess.CompletedProcess[str]:
    """kubectl on the overlay; without a namespace, for its objects have their own."""
    command = ["kubectl", f"--kubeconfig={KUBECONFIG}", verb, *args, "-k", OVERLAY]
    return subprocess.run(command, text=True, capture_output=True, check=False, timeout=120)


def differs(*args: str) -> str:
    """What `kubectl diff` prints, and everything if it fails; empty when nothing differs."""
    done = kubectl("diff", *args)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def apply_server_side() -> None:
    # Without --force-conflicts: hyperlet's components may own no field of the manifests.
    done = kubectl("apply", *SERVER_SIDE)
    assert done.returncode == 0, done.stderr
    assert "daemonset.apps/hyperlet-handler serverside-applied" in done.stdout


def test_deployed_manifests_have_no_diff() -> None:
    assert differs() == ""


def test_repeated_server_side_apply_has_no_diff() -> None:
    apply_server_side()
    assert differs(*SERVER_SIDE) == ""
    apply_server_side()
    # A client-side diff must still be empty.
    assert differs() == ""
