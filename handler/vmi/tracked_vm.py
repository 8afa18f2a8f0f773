"""In-memory state of one VM of this node."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from handler.launchers.connection import LauncherConnection
from handler.vmi.node_setup import NodeResources
from handler.vmi.status import Problem

WRITES, WRITES_SECONDS = 20, 60.0
"""Maximum patches of one VMI, and the interval in seconds; a flapping guest or launcher is reported with delay."""


@dataclass
class TrackedVm:
    """State of one pod's VM; all of it can be rediscovered."""

    launcher: LauncherConnection
    resources: NodeResources | None = None
    """The node's resources for the VM, once set up."""
    synced: str = ""
    """Digest of the inputs of the last successful Sync."""
    synced_at: float = 0.0
    task: asyncio.Task[None] | None = None
    trouble: Problem | None = None
    failures: int = 0
    retry_at: float = 0.0
    tried: str = ""
    """Setup key of the last failed attempt."""
    minor_since: float = 0.0
    retired: bool = False
    told: bool = False
    """The Event about its end is recorded."""
    writes: deque[float] = field(default_factory=lambda: deque(maxlen=WRITES))
    """Times of the latest patches of the VMI."""

    def write_in(self, clock: float) -> float:
        """Seconds until the VMI may be patched again; 0: now."""
        full = len(self.writes) == self.writes.maxlen
        return max(0.0, self.writes[0] + WRITES_SECONDS - clock) if full else 0.0

    @property
    def busy(self) -> bool:
        """Whether the VM is being set up."""
        return self.task is not None and not self.task.done()
