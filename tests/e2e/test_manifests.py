"""The manifests as GitOps tools use them: applied again, in either way, nothing differs and nothing conflicts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from cluster.paths import RUN
from tests.e2e.support import EXISTING, Kubectl

pytestmark = pytest.mark.skipif(EXISTING, reason="the names of the deployed images are its administrator's")

OVERLAY = str(RUN / "deploy")
"""What `make up` applied: manifests/ with the names of the built images."""
MANAGER = "--field-manager=e2e-gitops"
SERVER_SIDE = ("--server-side", MANAGER)


@pytest.fixture
def diff(kubectl: Kubectl) -> Callable[..., str]:
    def run(*args: str) -> str:
        """What `kubectl diff` prints; an error of its own is raised."""
        done = subprocess.run(
            kubectl.command("diff", *args, "-k", OVERLAY), text=True, capture_output=True, check=False, timeout=120
        )
        assert done.returncode in (0, 1), done.stderr
        assert bool(done.stdout) == bool(done.returncode)
        return done.stdout

    return run


def test_what_is_deployed_does_not_differ(diff: Callable[..., str]) -> None:
    assert diff() == ""


def test_server_side_apply_is_clean_the_second_time(kubectl: Kubectl, diff: Callable[..., str]) -> None:
    # Not by force: nothing that hyperlet's own components write may be a field of the manifests.
    kubectl("apply", *SERVER_SIDE, "-k", OVERLAY)
    assert diff(*SERVER_SIDE) == ""
    applied = kubectl("apply", *SERVER_SIDE, "-k", OVERLAY)
    assert "hyperlet-handler" in applied
    # And who applied in the other way before still sees no difference.
    assert diff() == ""
