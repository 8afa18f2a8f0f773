"""What is made before the cluster starts, side by side."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cluster import binaries, deps, dns, kubectl, toolchain, venv
from cluster.console import ClusterError, ProgressConsole
from deploy import prerequisites
from deploy.prerequisites import Job, JobAbandoned


def test_jobs_run_in_parallel_and_wait_for_dependencies() -> None:
    both = threading.Barrier(2, timeout=30)
    done: list[str] = []

    def packages() -> None:
        both.wait()
        done.append("packages")

    first = Job("packages", packages)

    def images() -> None:
        first.needed()
        done.append("images")

    prerequisites.run([first, Job("programs", lambda: both.wait() and None), Job("images", images)])
    assert done == ["packages", "images"]


def test_first_failure_is_raised_while_other_jobs_run() -> None:
    forever = threading.Event()

    def broken() -> None:
        raise ClusterError("apt-get update failed")

    first = Job("packages", broken)
    with pytest.raises(ClusterError, match="apt-get update failed"):
        prerequisites.run([Job("programs", lambda: forever.wait(300) and None), Job("images", first.needed), first])
    assert not forever.is_set()


def test_abandoned_job_does_not_hide_first_failure() -> None:
    def broken() -> None:
        raise ClusterError("pip failed")

    first = Job("python", broken)
    first.start()
    first.finished()
    with pytest.raises(JobAbandoned, match="python"):
        first.needed()


@pytest.mark.parametrize("cached", [False, True])
def test_next_group_compiles_once_the_first_has_nearly_compiled(monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    """In the cache it never says "nearly"; the next one must not wait for ever."""
    first, _ = binaries.NEEDED
    done: list[str] = []

    def build(
        console: object, group: binaries.Group, *, turn: Callable[[], object] | None, nearly: Callable[[], object]
    ) -> None:
        if group is first:
            assert turn is None
            done.append("first")
            if not cached:
                nearly()
                assert linked.wait(30), "the second group waits for more than it needs"
        else:
            assert turn is not None
            turn()
            done.append("second")
            linked.set()

    linked = threading.Event()
    monkeypatch.setattr(binaries, "build", build)
    monkeypatch.setattr(toolchain, "find", lambda version: "go")
    monkeypatch.setattr(deps, "ensure", lambda console, only_images: None)
    monkeypatch.setattr(venv, "ensure", lambda console: None)
    monkeypatch.setattr(prerequisites, "build_images", lambda console, images: None)
    prerequisites.prepare(ProgressConsole(io.StringIO()), [], cluster=True)
    assert done == ["first", "second"]


def test_environment_is_recreated_when_inputs_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("a")
    monkeypatch.setattr(venv, "ROOT", tmp_path)
    monkeypatch.setattr(venv, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(venv, "READY", tmp_path / "ready")
    assert not venv.is_ready()
    (tmp_path / "ready").write_text(venv.recipe() + "\n")
    assert venv.is_ready()
    (tmp_path / "constraints.txt").write_text("six==1.16.0\n")
    assert not venv.is_ready()


def test_dns_service_has_given_address_and_no_forwarder() -> None:
    documents = list(yaml.safe_load_all(dns.manifest("hyperlet.local/coredns:1", "10.77.128.10")))
    by_kind = {document["kind"]: document for document in documents}
    assert by_kind["Service"]["spec"]["clusterIP"] == "10.77.128.10"
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "hyperlet.local/coredns:1"
    corefile = by_kind["ConfigMap"]["data"]["Corefile"]
    assert "kubernetes cluster.local" in corefile
    # A `forward` would send what it does not know out of the cluster.
    assert "forward" not in corefile


def test_built_kubectl_is_linked_beside_hyperctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubectl, "VENV", tmp_path / "venv")
    monkeypatch.setattr(kubectl.binaries, "folder", lambda group: tmp_path / "new")
    kubectl.link()  # without an environment there is no place for it
    place = tmp_path / "venv" / "bin" / "kubectl"
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "old")
    kubectl.link()
    assert place.readlink() == tmp_path / "new" / "kubectl"
