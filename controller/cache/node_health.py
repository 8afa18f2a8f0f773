"""Nodes that nobody hears of: their VMs may run or not, and their handler cannot tell.

A node counts as lost when Kubernetes calls it not Ready and its handler's heartbeat has stayed away for longer than a
period. Either alone is not enough: without its kubelet a handler goes on telling what its guests do, and a handler that
is being updated leaves its guests alone. Heartbeats are timed by our own clock, from when we saw them: the clocks of
nodes differ.
"""

import time
from collections.abc import Callable

from api import names
from api.k8s.objects import Node
from controller import conditions
from controller.vmi.evidence import Fence
from kit.cache import Store

LOST_SECONDS = 75.0
"""A heartbeat's period (60 s) and some patience."""


TAINT_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""Kubernetes' own word for a node that is off: set by an administrator who made sure of it."""


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
        self._missing: dict[str, float] = {}
        nodes.on_change(self._changed)

    def on_turn(self, tell: Callable[[str], None]) -> None:
        """Has `tell` called with the name of a node that has become Ready or is not any more, was put out of service or
        deleted."""
        self._told.append(tell)

    def silent_for(self, name: str | None) -> float | None:
        """Seconds since the handler's last sign of life, of a node that is not Ready; None: nothing is wrong with it.

        A node that does not exist is nothing to wait for: Kubernetes removes its pods.
        """
        node = self._nodes.get(None, name or "")
        if node is None or is_ready(node):
            return None
        return self._clock() - self._heard.get(name or "", self._clock())

    def fence(self, name: str) -> Fence | None:
        """What an administrator said of a node: that it is off, or that it is gone for good.

        As for Kubernetes' own garbage collector, a taint on a node whose kubelet is heard means nothing.
        """
        node = self._nodes.get(None, name)
        if node is None:
            return Fence("deleted", self._clock() - self._missing.setdefault(name, self._clock()))
        self._missing.pop(name, None)
        return Fence("out of service") if _is_out_of_service(node) and not is_ready(node) else None

    def _changed(self, old: Node | None, new: Node | None) -> None:
        if new is None:
            gone = (old.metadata.name if old else None) or ""
            self._heard.pop(gone, None)
            self._missing[gone] = self._clock()
            self._tell(gone)
            return
        name = new.metadata.name or ""
        if old is None or _heartbeat(old) != _heartbeat(new):
            self._heard[name] = self._clock()
        self._missing.pop(name, None)
        if old is not None and (is_ready(old), _is_out_of_service(old)) != (is_ready(new), _is_out_of_service(new)):
            self._tell(name)

    def _tell(self, name: str) -> None:
        for tell in self._told:
            tell(name)


def _is_out_of_service(node: Node) -> bool:
    return any(taint.key == TAINT_OUT_OF_SERVICE for taint in node.spec.taints or ())


def _heartbeat(node: Node) -> str | None:
    return (node.metadata.annotations or {}).get(names.ANNOTATION_HEARTBEAT)
