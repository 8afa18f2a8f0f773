"""What is made before the cluster starts, side by side."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import yaml

from cluster import dns, kubectl, venv
from cluster.console import ClusterError
from deploy import prerequisites
from deploy.prerequisites import Job, JobAbandoned


def test_lanes_run_side_by_side_and_wait_for_each_other() -> None:
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


def test_the_first_failure_ends_it_while_others_still_run() -> None:
    forever = threading.Event()

    def broken() -> None:
        raise ClusterError("apt-get update failed")

    first = Job("packages", broken)
    with pytest.raises(ClusterError, match="apt-get update failed"):
        prerequisites.run([Job("programs", lambda: forever.wait(300) and None), Job("images", first.needed), first])
    assert not forever.is_set()


def test_a_lane_whose_need_did_not_come_is_not_the_failure_that_is_told() -> None:
    def broken() -> None:
        raise ClusterError("pip failed")

    first = Job("python", broken)
    first.start()
    first.finished()
    with pytest.raises(JobAbandoned, match="python"):
        first.needed()


def test_the_environment_is_made_again_when_what_it_is_made_from_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("a")
    monkeypatch.setattr(venv, "ROOT", tmp_path)
    monkeypatch.setattr(venv, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(venv, "READY", tmp_path / "ready")
    assert not venv.is_ready()
    (tmp_path / "ready").write_text(venv.recipe() + "\n")
    assert venv.is_ready()
    (tmp_path / "constraints.txt").write_text("six==1.16.0\n")
    assert not venv.is_ready()


def test_the_dns_server_has_the_address_that_pods_are_given() -> None:
    documents = list(yaml.safe_load_all(dns.manifest("hyperlet.local/coredns:1", "10.77.128.10")))
    by_kind = {document["kind"]: document for document in documents}
    assert by_kind["Service"]["spec"]["clusterIP"] == "10.77.128.10"
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "hyperlet.local/coredns:1"
    corefile = by_kind["ConfigMap"]["data"]["Corefile"]
    assert "kubernetes cluster.local" in corefile
    # A `forward` would send what it does not know out of the cluster.
    assert "forward" not in corefile


def test_the_built_kubectl_is_put_beside_hyperctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubectl, "VENV", tmp_path / "venv")
    monkeypatch.setattr(kubectl.binaries, "folder", lambda group: tmp_path / "new")
    kubectl.link()  # without an environment there is no place for it
    place = tmp_path / "venv" / "bin" / "kubectl"
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "old")
    kubectl.link()
    assert place.readlink() == tmp_path / "new" / "kubectl"
