"""The node's heartbeat: one patch of the Node per minute.

`kubevirt.io/schedulable` allows launcher pods here; `kubevirt.io/heartbeat` is the time of the last heartbeat;
`hyperlet/kvm` says whether KVM is usable (label) and why (annotation). The controller uses these rather than
`status.allocatable`, which counts devices, working or not, and lags behind after a kubelet restart. The labels stay
when the handler stops: a DaemonSet update must not evict VMs, and the heartbeat's age shows the outage.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from api import names
from api.errors import HyperletError
from api.k8s.meta import format_time
from api.k8s.objects import Node
from handler.devices.kvm_probe import KvmProbe
from kit import log
from kit.kube import Kube

PERIOD_SECONDS = 60.0
_RETRY_SECONDS = 3.0
_CHECKING_SECONDS = 0.2

_log = log.logger(component="heartbeat")


class NodeState(NamedTuple):
    """What the node can do for VMs."""

    takes_vms: bool
    kvm: KvmProbe


class Heartbeat:
    """Patches the Node once a period, and at once when the state changes; not before the state is known."""

    def __init__(
        self, kube: Kube, node: str, state: Callable[[], NodeState | None], period: float = PERIOD_SECONDS
    ) -> None:
        self._kube = kube
        self._node = node
        self._state = state
        self._period = period

    async def run(self) -> None:
        """Send heartbeats until cancelled; errors are logged and retried."""
        loop = asyncio.get_running_loop()
        said: tuple[bool, bool] | None = None
        due = 0.0
        while True:
            state = self._state()
            # The probe's sentence contains a time that varies: its changes wait for the next heartbeat.
            news = (state.takes_vms, state.kvm.works) if state is not None else None
            if state is not None and (news != said or loop.time() >= due):
                try:
                    await self._kube.patch(Node, None, self._node, patch(state, datetime.now(UTC)))
                    said, due = news, loop.time() + self._period
                except HyperletError as error:
                    _log.warning(
                        "Cannot write the node's heartbeat, retrying", why=error.message, again_in=_RETRY_SECONDS
                    )
            await asyncio.sleep(_RETRY_SECONDS if state is not None else _CHECKING_SECONDS)


def patch(state: NodeState, now: datetime) -> dict[str, object]:
    """The merge patch of the Node."""
    return {
        "metadata": {
            "labels": {
                names.LABEL_SCHEDULABLE: "true" if state.takes_vms else "false",
                names.LABEL_KVM: "true" if state.kvm.works else "false",
            },
            "annotations": {names.ANNOTATION_HEARTBEAT: format_time(now), names.ANNOTATION_KVM: state.kvm.sentence},
        }
    }
