"""`make up` on a cluster that is there: images pushed to a registry, nodes that pull them, the example VM."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.registry import serving
from tests.e2e.support import EXISTING, ROOT, SYSTEM, Json, Kubectl, new_space

pytestmark = [
    pytest.mark.alone,  # its images take the place of those that the others test
    pytest.mark.skipif(EXISTING, reason="needs nodes of its own"),
]


def workloads(kubectl: Kubectl) -> list[Json]:
    return kubectl.within(SYSTEM).items("deployments,daemonsets")


@pytest.fixture(scope="module")
def restored(kubectl: Kubectl) -> Iterator[None]:
    """The deployment of `make up` again when all is done."""
    yield
    kubectl.within(SYSTEM)(
        "patch", "kubevirt", "kubevirt", "--type=merge", "-p", '{"spec": {"imagePullSecrets": null}}'
    )
    command = [sys.executable, "-m", "cluster.deploy", "up"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    kubectl.within(SYSTEM)("delete", "secret", "registry", "--ignore-not-found")


def test_make_up_on_an_existing_cluster_pushes_and_runs_the_example(
    kubectl: Kubectl, restored: None, tmp_path: Path
) -> None:
    space = new_space(kubectl, "existing-cluster")
    try:
        with serving(space, "own", tmp_path / "registry") as registry:
            # One that runs already would not be started with the disk from the registry.
            kubectl("delete", "vm", "hello", "--ignore-not-found", "--timeout=90s")
            said = registry.typed(
                sys.executable, "-m", "cluster.deploy", "up",
                HYPERLET_CLUSTER="existing", HYPERLET_REGISTRY=registry.name, KUBECONFIG=str(kubectl.kubeconfig),
                HYPERLET_RUN=str(tmp_path / "run"),
            )  # fmt: skip
            assert f"push {registry.name}/launcher:" in said and "virtual machine hello runs" in said
            for workload in workloads(kubectl):
                for container in workload["spec"]["template"]["spec"]["containers"]:
                    assert container["image"].startswith(f"{registry.name}/"), container["image"]
            volumes = json.loads(kubectl("get", "vm", "hello", "-o", "json"))["spec"]["template"]["spec"]["volumes"]
            assert volumes[0]["containerDisk"]["image"] == f"{registry.name}/guests/tiny:1"
    finally:
        space.clear()
