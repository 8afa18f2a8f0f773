"""The node's sign of life: one small patch a minute.

`kubevirt.io/schedulable` lets launcher pods come here, `kubevirt.io/heartbeat` tells when the handler was last well,
`hyperlet/kvm` whether guests have KVM here (label) and why (annotation). The controller goes by that and not by the
node's `status.allocatable`, which counts devices, not whether and why they work, and lags behind a kubelet's restart.
Both stay when the handler stops: an update of the DaemonSet must not chase VMs away; the heartbeat's age tells enough.
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
    """What a node can do for VMs."""

    takes_vms: bool
    kvm: KvmProbe


class Heartbeat:
    """Patches the node once a period, and at once when the state has changed; never before there is one."""

    def __init__(
        self, kube: Kube, node: str, state: Callable[[], NodeState | None], period: float = PERIOD_SECONDS
    ) -> None:
        self._kube = kube
        self._node = node
        self._state = state
        self._period = period
        self.beat_at = 0.0
        """The loop's time of the last beat."""

    async def run(self) -> None:
        """Beats until cancelled; failures are logged and tried again."""
        loop = asyncio.get_running_loop()
        said: tuple[bool, bool] | None = None
        due = 0.0
        while True:
            state = self._state()
            # The verdict's words differ from probe to probe by milliseconds: they wait for the next beat.
            news = (state.takes_vms, state.kvm.works) if state is not None else None
            if state is not None and (news != said or loop.time() >= due):
                try:
                    await self._kube.patch(Node, None, self._node, patch(state, datetime.now(UTC)))
                    said, due, self.beat_at = news, loop.time() + self._period, loop.time()
                except HyperletError as error:
                    _log.warning(
                        "Cannot write the node's heartbeat, retrying", why=error.message, again_in=_RETRY_SECONDS
                    )
            await asyncio.sleep(_RETRY_SECONDS if state is not None else _CHECKING_SECONDS)


def patch(state: NodeState, now: datetime) -> dict[str, object]:
    """The merge patch of a node."""
    return {
        "metadata": {
            "labels": {
                names.LABEL_SCHEDULABLE: "true" if state.takes_vms else "false",
                names.LABEL_KVM: "true" if state.kvm.works else "false",
            },
            "annotations": {names.ANNOTATION_HEARTBEAT: format_time(now), names.ANNOTATION_KVM: state.kvm.sentence},
        }
    }
