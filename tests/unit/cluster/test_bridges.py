"""The list of a node's bridges."""

from pathlib import Path

import pytest

from cluster import bridges, node
from cluster.__main__ import parser
from cluster.console import ClusterError, ProgressConsole


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(node, "folder", lambda name: tmp_path / name)
    (tmp_path / "node1").mkdir()
    return tmp_path


def test_bridge_list_is_read_back(folder: Path) -> None:
    assert bridges.read("node1") == {}
    bridges.write("node1", {"br1": "eth1", "br7": ""})
    assert (folder / "node1" / "bridges").read_text() == "br1 eth1\nbr7\n"
    assert bridges.read("node1") == {"br1": "eth1", "br7": ""}


def test_invalid_device_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridges.lifecycle, "require_root", lambda: None)
    for name, port in (("br1; reboot", ""), ("-br", ""), ("b" * 16, ""), ("br1", "eth 1")):
        with pytest.raises(ClusterError, match="a device name has at most"):
            bridges.change(ProgressConsole(), name, port, None, remove=False)


def test_bridge_command_line() -> None:
    found = parser().parse_args(["bridge", "br1", "--port", "eth1", "--node", "node2"])
    assert (found.name, found.port, found.node, found.remove) == ("br1", "eth1", ["node2"], False)
