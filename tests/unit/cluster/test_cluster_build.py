"""The build of Kubernetes: its key, its repairs, what it reads from a source tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import kubernetes_build as build
from cluster.console import Problem


def tree_with(tmp_path: Path, line: str) -> Path:
    for name in build.PATCHES:
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f"func f() {{\n\t{line}\n\t}}\n}}\n")
    return tmp_path


def test_repairs_both_validators(tmp_path: Path) -> None:
    old = next(iter(build.PATCHES.values()))[0]
    tree = tree_with(tmp_path, old)
    build.apply_patches(tree)
    for name in build.PATCHES:
        text = (tree / name).read_text()
        assert "if data == nil {" in text
        assert "reflect.Zero" not in text


def test_refuses_a_source_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="0 times"):
        build.apply_patches(tree_with(tmp_path, "if data == nil {"))


def test_a_changed_recipe_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.key()
    assert before == build.key()
    monkeypatch.setattr(build, "TAGS", "other")
    assert build.key() != before


def test_the_servers_report_their_version() -> None:
    assert f"k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitVersion=v{build.VERSION}" in build.ldflags()


def test_finds_the_packages_that_ask_for_openapi(tmp_path: Path) -> None:
    staged = tmp_path / "staging" / "api"
    for path, text in {
        staged / "core" / "v1" / "doc.go": "// +k8s:openapi-gen=true\npackage v1\n",
        staged / "core" / "v2" / "doc.go": "package v2\n",
        staged / "core" / "v3" / "types_test.go": "// +k8s:openapi-gen=true\n",
        tmp_path / "pkg" / "version" / "x.go": "//+k8s:openapi-gen=true\n",
        tmp_path / "vendor" / "k8s.io" / "sample-apiserver" / "x.go": "// +k8s:openapi-gen=true\n",
    }.items():
        path.parent.mkdir(parents=True)
        path.write_text(text)
    # As in the real tree: what is vendored is a link to where it is kept.
    (tmp_path / "vendor" / "k8s.io" / "api").symlink_to(staged)
    assert build.openapi_packages(tmp_path) == ["pkg/version", "vendor/k8s.io/api/core/v1"]


def test_takes_the_machines_own_archive() -> None:
    lines = [
        "Elsewhere|stable|http://other.invalid/",
        "Debian|trixie-security|http://archive.invalid/debian-security/",
        "Debian|trixie|http://archive.invalid/debian/",
    ]
    assert build.archive_addresses(lines, "bookworm") == "http://archive.invalid/debian/"
    better = [*lines, "Debian|bookworm|http://old.invalid/debian/"]
    assert build.archive_addresses(better, "bookworm") == "http://old.invalid/debian/"
    assert build.archive_addresses(lines[:2], "bookworm") is None
