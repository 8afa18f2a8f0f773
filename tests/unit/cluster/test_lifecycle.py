"""Control groups, sysctls, node objects, volumes, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster import __main__ as command
from cluster import api, lifecycle, machine, network, paths, state, verbs, volumes
from cluster.console import ClusterError, tail


def test_only_version_1_hierarchies_are_read() -> None:
    text = "9:name=systemd:/\n4:memory:/a/b\n2:cpu,cpuacct:/\n0::/\n"
    assert machine.parse_hierarchies(text) == ["name=systemd", "memory", "cpu,cpuacct"]


def test_only_changed_sysctls_are_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROC_SYS", tmp_path / "sys")
    for name in machine.SYSCTLS[:3]:
        path = tmp_path / "sys" / name.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0\n")
    saved = tmp_path / "sysctls.json"
    machine.save_sysctls(saved)
    changed = tmp_path / "sys" / machine.SYSCTLS[0].replace(".", "/")
    changed.write_text("1\n")
    # A second save must not record the changed value as the machine's own.
    machine.save_sysctls(saved)
    assert machine.restore_sysctls(saved) == [machine.SYSCTLS[0]]
    assert changed.read_text() == "0"
    assert machine.restore_sysctls(saved) == []


def node(ready: str, boot: str) -> dict[str, object]:
    conditions = [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]
    return {"status": {"conditions": conditions, "nodeInfo": {"bootID": boot}}}


@pytest.mark.parametrize(("ready", "expected"), [("True", True), ("False", False), ("Unknown", False)])
def test_node_is_ready_by_its_condition(ready: str, expected: bool) -> None:
    assert api.is_node_ready(node(ready, "b")) is expected


def test_ready_condition_of_an_earlier_boot_does_not_count() -> None:
    assert lifecycle.is_up(node("True", "new"), "new")
    assert not lifecycle.is_up(node("True", "old"), "new")
    assert not lifecycle.is_up(node("True", "old"), None)
    assert not lifecycle.is_up({}, "new")


def test_volume_has_node_affinity_and_is_retained() -> None:
    spec = volumes.manifest("data", "node2", "2Gi", "fast")["spec"]
    assert spec["hostPath"]["path"] == "/var/lib/volumes/data"
    assert spec["persistentVolumeReclaimPolicy"] == "Retain"
    assert spec["storageClassName"] == "fast"
    assert "node2" in json.dumps(spec["nodeAffinity"])


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "-a", "a b"])
def test_invalid_volume_name_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RUN", tmp_path)
    with pytest.raises(ClusterError, match="is not a valid volume name"):
        volumes.create(None, name, "node1", "1Gi")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_state_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RUN", tmp_path)
    assert state.load() is None
    made = state.ClusterState(network.choose([]), "boot")
    state.save(made)
    assert state.load() == made
    (tmp_path / "state.json").write_text("{")
    assert state.load() is None


def test_checkouts_have_distinct_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RUN", tmp_path / "a")
    first = (state.link(), state.group(), state.etcd_data())
    monkeypatch.setattr(paths, "RUN", tmp_path / "b")
    assert not set(first) & {state.link(), state.group(), state.etcd_data()}
    assert len(state.link()) <= 15


@pytest.mark.parametrize(("seconds", "text"), [(5.9, "5s"), (65, "1m05s"), (3725, "1h02m05s")])
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert verbs.duration(seconds) == text


def test_failure_shows_log_tail_and_remedy(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("".join(f"line {n}\n" for n in range(100)))
    text = ClusterError("it broke", log=log, remedy="mend it").explain()
    assert text.splitlines()[0] == "failed: it broke"
    assert "line 99" in text
    assert "line 10\n" not in text
    assert text.splitlines()[-1].endswith("mend it")
    assert tail(tmp_path / "none", 3) == []


def test_exec_passes_options_to_the_command() -> None:
    found = command.parser().parse_args(["exec", "node1", "--", "ls", "-l", "--all"])
    assert (found.node, found.command[-3:]) == ("node1", ["ls", "-l", "--all"])


def test_failing_verb_prints_reason_and_returns_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "RUN", tmp_path)
    monkeypatch.setattr(lifecycle, "require_root", lambda: None)
    assert command.main(["off", "node1"]) == 1
    assert "no cluster is running" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["/opt/kubernetes/kubelet", "--v=1"], "kubelet"),
        (["/coredns", "-conf", "/etc/coredns/Corefile"], "coredns"),
        (["/csi-snapshotter"], "csi-snapshotter"),
        (["python3", "-m", "cluster.csi", "local"], "csi-driver"),
        (["python3", "-m", "handler"], ""),
        ([], ""),
    ],
)
def test_status_identifies_cluster_processes(words: list[str], kind: str) -> None:
    assert verbs.part(words) == kind
