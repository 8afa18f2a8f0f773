"""Bridges of the nodes, as an administrator configures them, for VMs and pods on a site network.

A node's bridges are listed in a file in its folder, one `NAME [PORT]` per line; its init reads it at every boot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cluster import lifecycle, network, node, state
from cluster.console import ClusterError, ProgressConsole

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,14}")


def path(name: str) -> Path:
    """The file that lists a node's bridges."""
    return node.folder(name) / "bridges"


def read(name: str) -> dict[str, str]:
    """The bridges of a node and their ports."""
    lines = path(name).read_text().splitlines() if path(name).exists() else []
    return {bridge: port for bridge, _, port in (line.partition(" ") for line in lines)}


def write(name: str, bridges: dict[str, str]) -> None:
    """Write which bridges a node creates when it starts."""
    path(name).write_text("".join(f"{bridge} {port}".rstrip() + "\n" for bridge, port in bridges.items()))


def change(console: ProgressConsole, bridge: str, port: str, nodes: Sequence[str] | None, *, remove: bool) -> None:
    """Create (or remove) a bridge on nodes, on all if none is named. A correct bridge is not changed."""
    lifecycle.require_root()
    if not NAME.fullmatch(bridge) or (port and not NAME.fullmatch(port)):
        raise ClusterError(f"'{bridge} {port}': a device name has at most 15 letters, digits, '-', '_' or '.'")
    with state.locked():
        known = lifecycle.required()
        for name in nodes or [each.name for each in known.nodes]:
            if known.node(name) is None:
                raise ClusterError(
                    f"there is no node '{name}'", remedy=f"there are {', '.join(n.name for n in known.nodes)}"
                )
            with console.step(f"{name}: {bridge} {'removed' if remove else 'created'}") as step:
                changed = _remove(name, bridge) if remove else _make(name, bridge, port)
                step.note = "" if changed else "unchanged"


def _make(name: str, bridge: str, port: str) -> bool:
    before = read(name)
    write(name, {**before, bridge: port})
    if node.init_record(name) is None:
        return before.get(bridge) != port
    inside = node.init_pid(name)
    made = not network.link_exists(bridge, inside=inside)
    if made:
        network.ip("link", "add", bridge, "type", "bridge", inside=inside)
    if port:
        network.ip("link", "set", port, "master", bridge, "up", inside=inside)
    network.ip("link", "set", bridge, "up", inside=inside)
    return made or before.get(bridge) != port


def _remove(name: str, bridge: str) -> bool:
    write(name, {each: port for each, port in read(name).items() if each != bridge})
    if node.init_record(name) is None or not network.link_exists(bridge, inside=node.init_pid(name)):
        return False
    network.ip("link", "delete", bridge, inside=node.init_pid(name))
    return True
