"""Nodes that nobody hears of: their VMs may run or not, and their handler cannot tell.

A node counts as lost when Kubernetes calls it not Ready and its handler's heartbeat has stayed away for longer than a
period. Either alone is not enough: without its kubelet a handler goes on telling what its guests do, and a handler that
is being updated leaves its guests alone. Heartbeats are timed by our own clock, from when we saw them: the clocks of
nodes differ.
"""

import time
from collections.abc import Callable

from api import names
from api.k8s import Node
from controller import conditions
from kit.cache import Store

LOST_SECONDS = 75.0
"""A heartbeat's period (60 s) and some patience."""


def is_ready(node: Node | None) -> bool:
    """Whether Kubernetes hears of the node's kubelet."""
    return node is not None and conditions.holds(node.status.conditions, "Ready")


class NodeHealth:
    """Follows the nodes' conditions and heartbeats."""

    def __init__(self, nodes: Store[Node], clock: Callable[[], float] = time.monotonic) -> None:
        self._nodes = nodes
        self._clock = clock
        self._heard: dict[str, float] = {}
        self._told: list[Callable[[str], None]] = []
        nodes.on_change(self._changed)

    def on_turn(self, tell: Callable[[str], None]) -> None:
        """Has `tell` called with the name of a node that has become Ready, or is not any more."""
        self._told.append(tell)

    def silent_for(self, name: str | None) -> float | None:
        """Seconds since the handler's last sign of life, of a node that is not Ready; None: nothing is wrong with it.

        A node that does not exist is nothing to wait for: Kubernetes removes its pods.
        """
        node = self._nodes.get(None, name or "")
        if node is None or is_ready(node):
            return None
        return self._clock() - self._heard.get(name or "", self._clock())

    def _changed(self, old: Node | None, new: Node | None) -> None:
        if new is None:
            self._heard.pop((old.metadata.name if old else None) or "", None)
            return
        name = new.metadata.name or ""
        if old is None or _heartbeat(old) != _heartbeat(new):
            self._heard[name] = self._clock()
        if old is not None and is_ready(old) != is_ready(new):
            for tell in self._told:
                tell(name)


def _heartbeat(node: Node) -> str | None:
    return (node.metadata.annotations or {}).get(names.ANNOTATION_HEARTBEAT)
