"""api imports no I/O, clock or event loop, and nothing but msgspec and the standard library."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

MODULES = sorted((Path(__file__).parents[3] / "api").rglob("*.py"))
PURE = {
    "api", "ast", "base64", "binascii", "collections", "dataclasses", "datetime", "difflib", "fnmatch", "fractions",
    "functools", "hashlib", "ipaddress", "itertools", "json", "msgspec", "re", "types", "typing", "uuid",
}  # fmt: skip
# The generator of the CRDs reads its own source and writes files; nothing else imports it.
GENERATOR = {"inspect", "pathlib", "sys"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_api_modules_import_only_pure_modules(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(path)}
    assert found <= (PURE | GENERATOR if path.stem == "crd" else PURE)
    if path.stem != "crd":
        assert "api.schema.crd" not in set(imports(path))
        assert "open(" not in path.read_text()
        assert ".now(" not in path.read_text()
