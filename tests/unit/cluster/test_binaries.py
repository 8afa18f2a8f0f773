"""The cluster's programs: groups, keys, other releases, given folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster import binaries, toolchain
from cluster.console import ClusterError, ProgressConsole

GO = "go1.26.8"


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HYPERLET_KUBERNETES", "HYPERLET_KUBERNETES_BIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(binaries, "CACHE", tmp_path / "cache")


def test_default_release_is_that_of_go_mod() -> None:
    text = (binaries.module_dir(binaries.KUBERNETES) / "go.mod").read_text()
    release = re.search(r"k8s\.io/kubernetes v(\S+)", text)
    assert release is not None and binaries.version() == release.group(1)
    published = binaries.version().replace("1.", "v0.", 1)
    replaced = re.findall(r"^\t(k8s\.io/\S+) => \1 (\S+)$", text, re.MULTILINE)
    assert len(replaced) == 31
    assert {number for _, number in replaced} == {published}


@pytest.mark.parametrize(
    ("setting", "release"), [("1.34", "1.34.4"), ("1.36.1", "1.36.1"), ("v1.37.2", "1.37.2"), ("", "1.36.3")]
)
def test_setting_selects_the_release(monkeypatch: pytest.MonkeyPatch, setting: str, release: str) -> None:
    monkeypatch.setenv("HYPERLET_KUBERNETES", setting)
    assert binaries.version() == release


@pytest.mark.parametrize("setting", ["latest", "1", "1.20", "1.36.x"])
def test_invalid_release_is_refused(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("HYPERLET_KUBERNETES", setting)
    with pytest.raises(ClusterError, match=setting) as caught:
        binaries.version()
    assert "1.36" in caught.value.remedy


def test_key_depends_on_release_go_flags_and_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = binaries.key(binaries.KUBERNETES, GO)
    assert own == binaries.key(binaries.KUBERNETES, GO)
    assert own.startswith("kubernetes-1.36.3-")
    keys = {own, binaries.key(binaries.KUBERNETES, "go1.27.0")}
    monkeypatch.setenv("HYPERLET_KUBERNETES", "1.35")
    keys.add(binaries.key(binaries.KUBERNETES, GO))
    monkeypatch.delenv("HYPERLET_KUBERNETES")
    module = tmp_path / "module"
    module.mkdir()
    for path in binaries.module_dir(binaries.KUBERNETES).glob("*.*"):
        (module / path.name).write_text(path.read_text() + "\n")
    monkeypatch.setattr(binaries, "module_dir", lambda group: module)
    keys.add(binaries.key(binaries.KUBERNETES, GO))
    assert len(keys) == 4


@pytest.mark.parametrize("group", binaries.GROUPS.values(), ids=binaries.GROUPS.keys())
def test_every_program_is_a_tool_of_its_module(group: binaries.Group) -> None:
    text = (binaries.module_dir(group) / "go.mod").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", binaries.release(group))
    for package in group.programs.values():
        assert package.startswith(".") or f"\t{package}\n" in text


def test_components_match_the_multi_call_program() -> None:
    source = (binaries.module_dir(binaries.KUBERNETES) / "main.go").read_text()
    assert set(re.findall(r'^\t"([a-z-]+)": ', source, re.MULTILINE)) == set(binaries.COMPONENTS)


def test_both_modules_use_the_same_staging_modules() -> None:
    def parts(group: binaries.Group) -> set[str]:
        text = (binaries.module_dir(group) / "go.mod").read_text()
        return set(re.findall(r"^\tk8s\.io/\S+ => .*$", text, re.MULTILINE))

    assert parts(binaries.KUBERNETES) == parts(binaries.CORE)


OWN = """\
module k8s.io/kubernetes

go 1.24.0

require (
\tk8s.io/api v0.0.0
\tk8s.io/klog/v2 v2.130.1
\tk8s.io/kubelet v0.0.0
)

replace (
\tk8s.io/api => ./staging/src/k8s.io/api
)
"""


def test_module_for_another_release_uses_its_requirements() -> None:
    text = binaries.other_go_mod(OWN, "1.34.4")
    assert "require k8s.io/kubernetes v1.34.4\n" in text
    assert "\nreplace (\n\tk8s.io/api => k8s.io/api v0.34.4\n\tk8s.io/kubelet => k8s.io/kubelet v0.34.4\n)\n" in text
    assert toolchain.required(text) == (1, 24, 0)


def filled(folder: Path, names: tuple[str, ...]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_given_folder_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = filled(tmp_path / "given", (*binaries.COMPONENTS, "kubectl"))
    monkeypatch.setenv("HYPERLET_KUBERNETES_BIN", str(given))
    assert binaries.build(ProgressConsole(quiet=True), binaries.KUBERNETES) == given
    assert binaries.program("kubelet") == given / "kubelet"
    # A group that is missing in the folder is built.
    assert binaries.given_dir(binaries.CORE) is None
    filled(given, ("etcd",))
    with pytest.raises(ClusterError, match="lacks containerd"):
        binaries.given_dir(binaries.CORE)


def test_given_folder_with_incomplete_group_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYPERLET_KUBERNETES_BIN", str(filled(tmp_path / "given", ("kubelet", "kubectl"))))
    with pytest.raises(ClusterError, match="lacks kube-apiserver, kube-controller-manager"):
        binaries.find(binaries.KUBERNETES)


def test_incomplete_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find", lambda needed: toolchain.Toolchain(Path("/go"), GO))
    group = binaries.CORE
    folder = binaries.CACHE / "binaries" / binaries.key(group, GO)
    filled(folder, group.files[:-1])
    assert binaries.find(group) is None
    with pytest.raises(ClusterError, match="not built"):
        binaries.program("etcd")
    filled(folder, group.files)
    assert binaries.program("etcd") == folder / "etcd"


def test_error_without_module_proxy_names_the_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text(
        '#!/bin/sh\n[ "$1" = env ] && { echo go1.26.8; exit; }\necho "dial tcp: connection refused" >&2\nexit 1\n'
    )
    go.chmod(0o755)
    monkeypatch.setattr(toolchain, "candidates", lambda: iter([go]))
    toolchain.ask.cache_clear()
    with pytest.raises(ClusterError) as caught:
        binaries.build(ProgressConsole(quiet=True), binaries.CORE)
    toolchain.ask.cache_clear()
    told = caught.value.explain()
    assert "could not download the Go modules of etcd, containerd" in told
    assert "connection refused" in told
    assert "go env GOPROXY" in told


def test_groups_are_selected_by_name() -> None:
    assert binaries.choose([]) == [binaries.KUBERNETES, binaries.CORE]
    assert binaries.choose(["extras"]) == [binaries.EXTRAS]
    assert binaries.choose(["all"]) == list(binaries.GROUPS.values())
    with pytest.raises(ClusterError, match="'cordns'"):
        binaries.choose(["cordns"])
