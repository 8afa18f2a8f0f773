"""What the handler remembers of one VM of its node."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from handler.launchers.connection import LauncherConnection
from handler.vmi.node_setup import NodeResources
from handler.vmi.status import Problem

WRITES, WRITES_SECONDS = 20, 60.0
"""So many patches of one VMI in so many seconds; a guest or launcher that flaps faster is written about later."""


@dataclass
class TrackedVm:
    """What this process remembers of one pod's VM. All of it can be found out again."""

    launcher: LauncherConnection
    resources: NodeResources | None = None
    """The node's side of the VM, once it has been made or found made."""
    synced: str = ""
    """Digest of the spec that the launcher has taken."""
    synced_at: float = 0.0
    task: asyncio.Task[None] | None = None
    trouble: Problem | None = None
    failures: int = 0
    retry_at: float = 0.0
    tried: str = ""
    """What the last try that failed was made for."""
    minor_since: float = 0.0
    retired: bool = False
    told: bool = False
    """Its end stands in an Event already."""
    writes: deque[float] = field(default_factory=lambda: deque(maxlen=WRITES))
    """When the VMI was patched, the latest times."""

    def write_in(self, clock: float) -> float:
        """Seconds until the VMI may be patched again; 0: now."""
        full = len(self.writes) == self.writes.maxlen
        return max(0.0, self.writes[0] + WRITES_SECONDS - clock) if full else 0.0

    @property
    def busy(self) -> bool:
        """Whether the VM is being brought up right now."""
        return self.task is not None and not self.task.done()
