"""Node health: nodes that do not respond, and nodes fenced by an administrator.

A node counts as lost when it is not Ready and its handler's heartbeat is overdue. Either alone is not enough: without
its kubelet a handler still reports its guests, and a handler that is being updated does not affect guests. The age of
a heartbeat is measured with the controller's clock from when it was received: clocks of nodes differ.
"""

import time
from collections.abc import Callable

from api import conditions, names
from api.k8s.objects import Node
from controller.vmi.evidence import Fence
from kit.cache import Store

LOST_SECONDS = 75.0
"""The heartbeat period (60 s) plus a margin."""


TAINT_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""Kubernetes' taint for a node that is powered off: set by an administrator who has verified that."""


def is_ready(node: Node | None) -> bool:
    """Whether the Node exists and its condition Ready is True."""
    return node is not None and conditions.holds(node.status.conditions, "Ready")


class NodeHealth:
    """Tracks conditions, taints and heartbeats of Nodes."""

    def __init__(self, nodes: Store[Node], clock: Callable[[], float] = time.monotonic) -> None:
        self._nodes = nodes
        self._clock = clock
        self._heartbeats: dict[str, float] = {}
        self._callbacks: list[Callable[[str], None]] = []
        self._missing: dict[str, float] = {}
        nodes.on_change(self._changed)

    def on_turn(self, callback: Callable[[str], None]) -> None:
        """Registers `callback`, called with the name of a Node that was deleted, or whose readiness or out-of-service
        taint has changed."""
        self._callbacks.append(callback)

    def silent_for(self, name: str | None) -> float | None:
        """Seconds since the last heartbeat of a node that is not Ready; None if it is Ready or does not exist.

        There is no need to wait for a deleted Node: Kubernetes deletes its pods.
        """
        node = self._nodes.get(None, name or "")
        if node is None or is_ready(node):
            return None
        return self._clock() - self._heartbeats.get(name or "", self._clock())

    def fence(self, name: str) -> Fence | None:
        """The fencing of a node: it is tainted out-of-service, or was deleted. None if it is not fenced.

        As in Kubernetes' pod garbage collector, the taint is ignored while the node is Ready.
        """
        node = self._nodes.get(None, name)
        if node is None:
            return Fence("deleted", self._clock() - self._missing.setdefault(name, self._clock()))
        self._missing.pop(name, None)
        return Fence("out of service") if _is_out_of_service(node) and not is_ready(node) else None

    def _changed(self, old: Node | None, new: Node | None) -> None:
        if new is None:
            gone = (old.metadata.name if old else None) or ""
            self._heartbeats.pop(gone, None)
            self._missing[gone] = self._clock()
            self._notify(gone)
            return
        name = new.metadata.name or ""
        if old is None or _heartbeat(old) != _heartbeat(new):
            self._heartbeats[name] = self._clock()
        self._missing.pop(name, None)
        if old is not None and (is_ready(old), _is_out_of_service(old)) != (is_ready(new), _is_out_of_service(new)):
            self._notify(name)

    def _notify(self, name: str) -> None:
        for callback in self._callbacks:
            callback(name)


def _is_out_of_service(node: Node) -> bool:
    return any(taint.key == TAINT_OUT_OF_SERVICE for taint in node.spec.taints or ())


def _heartbeat(node: Node) -> str | None:
    return (node.metadata.annotations or {}).get(names.ANNOTATION_HEARTBEAT)
