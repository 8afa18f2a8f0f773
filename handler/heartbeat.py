"""The node's sign of life: one small patch a minute.

`kubevirt.io/schedulable` lets launcher pods come here, `kubevirt.io/heartbeat` tells when the handler was last well.
Both stay when the handler stops: an update of the DaemonSet must not chase VMs away; the heartbeat's age tells enough.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from api import names
from api.errors import HyperletError
from api.k8s import Node
from api.meta import format_time
from kit import log
from kit.kube import Kube

PERIOD_SECONDS = 60.0
_RETRY_SECONDS = 3.0

_log = log.logger(component="heartbeat")


class Heartbeat:
    """Patches the node once a period, and at once when `fine` has changed."""

    def __init__(self, kube: Kube, node: str, fine: Callable[[], bool], period: float = PERIOD_SECONDS) -> None:
        self._kube = kube
        self._node = node
        self._fine = fine
        self._period = period
        self.beat_at = 0.0
        """The loop's time of the last beat."""

    async def run(self) -> None:
        """Beats until cancelled; failures are logged and tried again."""
        loop = asyncio.get_running_loop()
        said: bool | None = None
        due = 0.0
        while True:
            fine = self._fine()
            if fine != said or loop.time() >= due:
                try:
                    await self._kube.patch(Node, None, self._node, patch(fine, datetime.now(UTC)))
                    said, due, self.beat_at = fine, loop.time() + self._period, loop.time()
                except HyperletError as error:
                    _log.warning(
                        "The node's heartbeat could not be written", why=error.message, again_in=_RETRY_SECONDS
                    )
            await asyncio.sleep(_RETRY_SECONDS)


def patch(fine: bool, now: datetime) -> dict[str, object]:
    """The merge patch of a node."""
    return {
        "metadata": {
            "labels": {names.LABEL_SCHEDULABLE: "true" if fine else "false"},
            "annotations": {names.ANNOTATION_HEARTBEAT: format_time(now)},
        }
    }
