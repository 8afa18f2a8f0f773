"""The rerun of failed tests: what passes only then is named and counted, what fails twice is a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests import steady

TESTS = """
from pathlib import Path

def test_good():
    pass

def test_unsteady():
    mark = Path(__file__).with_name("mark")
    known = mark.exists()
    mark.touch()
    assert known
"""
BAD = """
def test_bad():
    assert False
"""


def typed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.steady", *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)


def project(folder: Path, content: str) -> Path:
    (folder / "tests").mkdir()
    shutil.copy(steady.__file__, folder / "tests" / "steady.py")
    (folder / "tests" / "test_some.py").write_text(content)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return folder


def test_passing_rerun_succeeds_and_is_reported_by_name(tmp_path: Path) -> None:
    folder = project(tmp_path, TESTS)
    assert typed(folder, "begin").returncode == 0
    assert typed(folder, "run", "tests/test_some.py", "--", "-m", "not alone").returncode == 0
    told = typed(folder, "report").stdout.splitlines()
    assert told == ["unsteady tests (failed, then passed): 1", "  tests/test_some.py::test_unsteady"]
    typed(folder, "begin")
    assert typed(folder, "report").stdout.splitlines() == ["unsteady tests (failed, then passed): 0"]


def test_second_failure_fails_and_is_not_unsteady(tmp_path: Path) -> None:
    folder = project(tmp_path, TESTS + BAD)
    assert typed(folder, "run", "tests/test_some.py").returncode == 1
    assert "test_bad" not in typed(folder, "report").stdout
