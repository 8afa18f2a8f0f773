"""Node health: silent nodes and fencing."""

import msgspec

from api.k8s.objects import Node
from controller.cache.node_health import NodeHealth, is_ready


class Nodes:
    """A fake `kit.cache.Store` of Nodes."""

    def __init__(self) -> None:
        self.objects: dict[str, Node] = {}

    def on_change(self, callback) -> None:
        self.callback = callback

    def get(self, _namespace: str | None, name: str) -> Node | None:
        return self.objects.get(name)

    def put(self, name: str, ready: str, beat: str) -> None:
        old = self.objects.get(name)
        new = msgspec.convert(
            {
                "metadata": {"name": name, "annotations": {"kubevirt.io/heartbeat": beat}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            },
            Node,
        )
        self.objects[name] = new
        self.callback(old, new)

    def drop(self, name: str) -> None:
        self.callback(self.objects.pop(name), None)


def health() -> tuple[NodeHealth, Nodes, list[float], list[str]]:
    nodes, clock, told = Nodes(), [100.0], []
    made = NodeHealth(nodes, lambda: clock[0])  # type: ignore[arg-type]
    made.on_turn(told.append)
    return made, nodes, clock, told


def test_silence_counts_from_last_heartbeat_while_node_is_not_ready() -> None:
    made, nodes, clock, told = health()
    nodes.put("a", "True", "12:00")
    clock[0] = 150
    nodes.put("a", "True", "12:01")
    clock[0] = 170
    assert made.silent_for("a") is None
    nodes.put("a", "Unknown", "12:01")
    assert made.silent_for("a") == 20 and told == ["a"]
    clock[0] = 180
    nodes.put("a", "Unknown", "12:02")
    assert made.silent_for("a") == 0, "the handler is alive: only the kubelet is down"
    nodes.put("a", "True", "12:02")
    assert made.silent_for("a") is None and told == ["a", "a"]


def test_heartbeat_age_ignores_node_clock() -> None:
    made, nodes, clock, _ = health()
    nodes.put("a", "False", "1999-12-31T23:59:59Z")
    clock[0] = 130
    assert made.silent_for("a") == 30


def test_missing_node_is_not_silent() -> None:
    made, nodes, _, _ = health()
    assert made.silent_for(None) is None and made.silent_for("gone") is None
    nodes.put("a", "Unknown", "x")
    nodes.drop("a")
    assert made.silent_for("a") is None
    assert not is_ready(None)
