"""What the folders of tests may share: everything common is in tests/fakes and in modules of tests itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
FOLDERS = ("unit", "node", "e2e", "fakes")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_test_imports_from_another_folder(folder: str) -> None:
    others = tuple(f"tests.{other}" for other in FOLDERS if other not in (folder, "fakes"))
    for path in (TESTS / folder).rglob("*.py"):
        crossing = [name for name in imported(path) if name.startswith(others)]
        assert crossing == [], path.relative_to(TESTS)


def test_waiting_is_defined_once() -> None:
    """A loop of looks and sleeps belongs to tests/waiting.py, which reports what was awaited."""
    found = [
        f"{path.relative_to(TESTS)}: {node.name}"
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name in ("wait_for", "wait_until", "eventually")
    ]
    assert found == ["waiting.py: wait_for"]
