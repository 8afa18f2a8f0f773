"""A fake API server, and hyperctl running against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cli.app import run
from tests.unit.cli.published import Published


class Result(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


Hyperctl = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[Published]:
    with Published() as running:
        yield running


@pytest.fixture
def hyperctl(
    server: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Hyperctl:
    """Runs hyperctl with a kubeconfig for the server."""
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))

    def call(*words: str) -> Result:
        code = run(words)
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    return call
