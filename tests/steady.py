"""`python -m tests.steady`: pytest, with one rerun of what failed; tests that pass only then are reported as unsteady.

run TESTS... [-- OPTION...]   pytest on TESTS with these options; the rerun is without them
begin                         forget the unsteady tests of the last run
report                        print the unsteady tests since `begin`, and how many there are

Exit status of `run`: pytest's, of the rerun if there was one. Pytest keeps the ids of failed tests in its cache
(`lastfailed`, docs.pytest.org "How to re-run failed tests"); the difference between the two runs is what is unsteady.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAST_FAILED = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"
RECORD = ROOT / ".pytest_cache" / "unsteady.txt"
TESTS_FAILED = 1
"""pytest's exit status when it ran to its end and a test failed."""


def failed() -> set[str]:
    """Ids of the tests that failed when they were last run."""
    try:
        return set(json.loads(LAST_FAILED.read_text()))
    except FileNotFoundError:
        return set()


def run(tests: Sequence[str], options: Sequence[str]) -> int:
    """Run tests, and those that failed once more. Returns the exit status."""
    command = [sys.executable, "-m", "pytest", *tests, "-q"]
    LAST_FAILED.unlink(missing_ok=True)
    status = subprocess.run([*command, *options], cwd=ROOT, check=False).returncode
    if status != TESTS_FAILED:
        return status
    first = failed()
    print("Once more, only what failed:", flush=True)
    rerun = [*command, "--last-failed", "--last-failed-no-failures", "none", *markers(options)]
    status = subprocess.run(rerun, cwd=ROOT, check=False).returncode
    unsteady = sorted(first - failed())
    RECORD.parent.mkdir(exist_ok=True)
    with RECORD.open("a") as stream:
        stream.writelines(f"{name}\n" for name in unsteady)
    return status


def markers(options: Sequence[str]) -> list[str]:
    """The `-m EXPRESSION` of the options: the rerun chooses from the same tests, but runs them one at a time."""
    return [word for index, word in enumerate(options) if word == "-m" or (index and options[index - 1] == "-m")]


def report() -> int:
    """Print what passed only when it was run again."""
    names = RECORD.read_text().splitlines() if RECORD.exists() else []
    print(f"unsteady tests (failed, then passed): {len(names)}")
    for name in names:
        print(f"  {name}")
    return 0


def main(words: Sequence[str]) -> int:
    """Exit status."""
    match list(words):
        case ["begin"]:
            RECORD.unlink(missing_ok=True)
            return 0
        case ["report"]:
            return report()
        case ["run", *rest]:
            end = rest.index("--") if "--" in rest else len(rest)
            return run(rest[:end], rest[end + 1 :])
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
