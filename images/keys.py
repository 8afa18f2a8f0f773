"""Hashes of inputs: the same inputs are never built twice, and a tag identifies an image's contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

LENGTH = 12
"""Hexadecimal digits of a tag."""

IGNORED = frozenset({"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"})


def text_key(*parts: str) -> str:
    """A short hash of strings and of the boundaries between them."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(b"%d:" % len(encoded) + encoded)
    return digest.hexdigest()[:LENGTH]


def files_below(root: Path, names: Iterable[str]) -> list[Path]:
    """The files that `names` (files or folders below `root`) contain, sorted; missing ones are left out."""
    found: set[Path] = set()
    for name in names:
        path = root / name
        if path.is_file():
            found.add(path)
        elif path.is_dir():
            found.update(
                each
                for each in path.rglob("*")
                if each.is_file() and not IGNORED & set(each.relative_to(root).parts) and each.suffix != ".pyc"
            )
    return sorted(found)


def tree_key(root: Path, names: Iterable[str], *extra: str) -> str:
    """A short hash of the names, contents and executable bits of files below `root`, and of `extra` strings."""
    digest = hashlib.sha256()
    for path in files_below(root, names):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        executable = "x" if path.stat().st_mode & 0o100 else "-"
        digest.update(f"{path.relative_to(root)}\0{executable}\0{content}\n".encode())
    for part in extra:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:LENGTH]
