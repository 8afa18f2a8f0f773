"""Fixtures: a real cluster with hyperlet deployed (`make up`), and one namespace per module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.support import KUBECONFIG, E2eNamespace, Kubectl, create_namespace

# Execution order of the modules; those that disturb the whole cluster come last.
ORDER = [
    "cluster",
    "vm",
    "lifecycle",
    "resize",
    "ownership",
    "storage",
    "csi",
    "csi_sanity",
    "images",
    "scheduling",
    "networks",
    "dns",
    "habits",
    "bad_manifests",
    "security",
    "pod_security",
    "user_namespaces",
    "admission",
    "subresources",
    "copies",
    "template_changes",
    "disruptions",
    "faults",
    "own_cluster",
]


UNPROVEN = frozenset(
    line for line in Path(__file__).with_name("unproven.txt").read_text().splitlines() if line and line[0] != "#"
)
"""Node ids, without parameters, of tests that have not been seen passing yet."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all e2e tests, and sort them by ORDER."""
    mine = [item for item in items if "tests/e2e" in item.path.as_posix()]
    for item in mine:
        item.add_marker(pytest.mark.cluster)
        if item.nodeid.split("[")[0] in UNPROVEN:
            item.add_marker(pytest.mark.unproven)

    def place(item: pytest.Item) -> int:
        title = item.path.stem.removeprefix("test_")
        return ORDER.index(title) if title in ORDER else 0

    ordered = iter(sorted(mine, key=place))
    chosen = {id(item) for item in mine}
    items[:] = [next(ordered) if id(item) in chosen else item for item in items]


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """kubectl on the cluster of `make up`."""
    assert KUBECONFIG.is_file(), f"{KUBECONFIG} is not there: run 'make up' first"
    return Kubectl(KUBECONFIG)


@pytest.fixture(scope="module")
def space(kubectl: Kubectl, request: pytest.FixtureRequest) -> Iterator[E2eNamespace]:
    """A namespace for the tests of one module, emptied at the end."""
    made = create_namespace(kubectl, request.path.stem.removeprefix("test_").replace("_", "-"))
    yield made
    made.clear()
