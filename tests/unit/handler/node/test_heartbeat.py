"""The node's heartbeat."""

import asyncio
from datetime import UTC, datetime

from handler.devices import kvm_probe
from handler.node import heartbeat


def test_heartbeat():
    state = heartbeat.NodeState(True, kvm_probe.KvmProbe(False, "/dev/kvm is missing"))
    patch = heartbeat.patch(state, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert patch == {
        "metadata": {
            "labels": {"kubevirt.io/schedulable": "true", "hyperlet/kvm": "false"},
            "annotations": {
                "kubevirt.io/heartbeat": "2026-01-02T03:04:05Z",
                "hyperlet/kvm": "/dev/kvm is missing",
            },
        }
    }


async def test_no_heartbeat_before_devices_are_checked():
    """A restarted handler must not label its node as unschedulable or without KVM."""
    written, beaten, states = (
        [],
        asyncio.Event(),
        [None, None, heartbeat.NodeState(True, kvm_probe.KvmProbe(True, "quick"))],
    )

    class Nodes:
        async def patch(self, _kind, _namespace, name, patch):
            written.append((name, patch["metadata"]["labels"]))
            beaten.set()

    def state():
        return states.pop(0) if len(states) > 1 else states[0]

    task = asyncio.create_task(heartbeat.Heartbeat(Nodes(), "node1", state).run())
    try:
        await asyncio.wait_for(beaten.wait(), 10)
    finally:
        task.cancel()
    assert written == [("node1", {"kubevirt.io/schedulable": "true", "hyperlet/kvm": "true"})]
