"""Keys change exactly when their inputs do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from images.keys import text_key, tree_key


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "code/sub").mkdir(parents=True)
    (tmp_path / "code/a.py").write_text("a")
    (tmp_path / "code/sub/b.py").write_text("b")
    (tmp_path / "other").write_text("other")
    return tmp_path


def key(tree: Path) -> str:
    return tree_key(tree, ["code"])


def rename(tree: Path) -> None:
    (tree / "code/a.py").rename(tree / "code/c.py")


def touch(tree: Path) -> None:
    os.utime(tree / "code/a.py", (1, 1))


def byte_code(tree: Path) -> None:
    (tree / "code/__pycache__").mkdir()
    (tree / "code/__pycache__/a.pyc").write_bytes(b"x")


CHANGES: list[Callable[[Path], object]] = [
    lambda tree: (tree / "code/a.py").write_text("A"),
    lambda tree: (tree / "code/new.py").write_text(""),
    lambda tree: (tree / "code/sub/b.py").unlink(),
    lambda tree: (tree / "code/a.py").chmod(0o755),
    rename,
]
NO_CHANGES: list[Callable[[Path], object]] = [touch, byte_code, lambda tree: (tree / "other").write_text("changed")]


@pytest.mark.parametrize("change", CHANGES)
def test_relevant_change_alters_the_key(change: Callable[[Path], object], tree: Path) -> None:
    before = key(tree)
    change(tree)
    assert key(tree) != before


@pytest.mark.parametrize("change", NO_CHANGES)
def test_irrelevant_change_keeps_the_key(change: Callable[[Path], object], tree: Path) -> None:
    before = key(tree)
    change(tree)
    assert key(tree) == before


def test_key_ignores_order_and_includes_extra_text(tree: Path) -> None:
    assert tree_key(tree, ["code", "other"]) == tree_key(tree, ["other", "code"])
    assert tree_key(tree, ["code"], "base:1") != tree_key(tree, ["code"], "base:2")


def test_text_boundaries_alter_the_key() -> None:
    assert text_key("ab", "c") != text_key("a", "bc")
