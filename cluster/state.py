"""The cluster's state between two commands: `.run/state.json` and the process records."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import network, paths
from cluster.components import NodeAddresses, nodes
from cluster.processes import ProcessRecords

NODE_NAMES = ("node1", "node2")


def identity() -> str:
    """Six letters that distinguish this checkout's cluster from others on the same machine."""
    return hashlib.sha256(str(paths.RUN).encode()).hexdigest()[:6]


def group() -> str:
    """The control group all of the cluster's processes are in."""
    return f"hyperlet-{identity()}"


def link() -> str:
    """The machine's link to the cluster. Link names have at most 15 letters."""
    return f"hl-{identity()}"


def etcd_data() -> Path:
    """etcd's folder: in memory where the machine has a /dev/shm, because etcd syncs to disk at every write."""
    shared = Path("/dev/shm")
    return shared / f"{group()}-etcd" if shared.is_dir() else paths.RUN / "etcd"


def boot_id() -> str:
    """The machine's boot id, which changes at every boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class ClusterState:
    """A cluster that was set up in this boot of the machine."""

    plan: network.AddressPlan
    boot_id: str

    @property
    def nodes(self) -> list[NodeAddresses]:
        """All nodes, running or not."""
        return nodes(self.plan, NODE_NAMES)

    def node(self, name: str) -> NodeAddresses | None:
        """The node of that name."""
        return next((node for node in self.nodes if node.name == name), None)


def _file() -> Path:
    return paths.RUN / "state.json"


def save(state: ClusterState) -> None:
    """Write the state file."""
    paths.RUN.mkdir(parents=True, exist_ok=True)
    temporary = _file().with_suffix(".new")
    temporary.write_text(json.dumps({"block": str(state.plan.block), "boot_id": state.boot_id}))
    temporary.rename(_file())


def load() -> ClusterState | None:
    """Read the state file; None when there is no readable one."""
    try:
        fields = json.loads(_file().read_text())
        return ClusterState(network.AddressPlan(network.Network(fields["block"])), str(fields["boot_id"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def records() -> ProcessRecords:
    """The records of the cluster's processes."""
    return ProcessRecords(paths.RUN / "processes")


@contextmanager
def locked() -> Iterator[None]:
    """Hold the cluster's lock: one command at a time changes it, the others wait."""
    paths.RUN.mkdir(parents=True, exist_ok=True)
    with (paths.RUN / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
