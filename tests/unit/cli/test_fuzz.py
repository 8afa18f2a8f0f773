"""Any command line ends with output or one error line, never a traceback."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.validation.document import validate_document
from cli import manifest
from cli.app import run
from cli.commands import like_cobra
from cli.problem import CliError
from cli.targets import forward_of, login_of, target_of

WORDS = st.sampled_from(
    [
        "start", "stop", "vnc", "screenshot", "create", "vm", "vmi", "pause", "expose", "version", "options", "help",
        "-n", "--namespace", "-o", "-ojson", "--force", "--force=true", "--grace-period", "0", "-1", "--", "-", "=", "",
        "--kubeconfig=", "--server=http://127.0.0.1:1", "--as-group=x", "--v", "9", "--name=a", "-f", "/nonexistent/x",
        "--memory=1Gi", "--volume-containerdisk", "src:x", "src:,name:", "--run-strategy=Manual", "--help", "é\x00",
    ]
)  # fmt: skip


@given(st.text())
def test_targets_and_ports(text: str) -> None:
    for read in (target_of, forward_of, login_of):
        with contextlib.suppress(CliError):
            read(text)


@given(st.lists(st.text()), st.frozensets(st.text()), st.frozensets(st.text()))
def test_flags_in_gos_way(words: list[str], switches: frozenset[str], takes_value: frozenset[str]) -> None:
    with contextlib.suppress(click.UsageError):
        read = like_cobra(words, switches, takes_value)
        assert len(read) <= len(words)


@given(st.text(), st.lists(st.text(), max_size=2), st.text(), st.text())
def test_created_manifest_is_valid(name: str, disks: list[str], memory: str, strategy: str) -> None:
    with contextlib.suppress(CliError):
        vm_options = manifest.VmOptions(
            name, containerdisks=[f"src:{disk}" for disk in disks], memory=memory, run_strategy=strategy
        )
        assert validate_document(manifest.machine(vm_options)) == []


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, max_size=7))
def test_any_command_line_ends_with_one_error_line(tmp_path: Path, words: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        patch.delenv("KUBECONFIG", raising=False)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(words)
    assert code in (0, 1), words
    assert "Traceback" not in err.getvalue() and "unexpected error" not in err.getvalue(), (words, err.getvalue())
    if code:
        lines = [line for line in err.getvalue().splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1 and lines[0].startswith("error: "), (words, err.getvalue())
