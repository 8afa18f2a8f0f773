"""Launchers that have come up, noticed before kubelet tells: it takes up to a second for that, the launcher is idle.

Only whether a name is there is asked, of pods that are on their way; who stands behind it is found out later
(`handler.launchers.connection`).
"""

import asyncio
import os
import pathlib
import time
from collections.abc import Callable

_SOON, _EAGER_PAUSE, _PATIENT_PAUSE = 15.0, 0.02, 0.25


class LauncherDiscovery:
    """Calls `arrived` with the UID of a pod that is expected, once its launcher waits to be woken."""

    def __init__(self, arrived: Callable[[str], None], pods: pathlib.Path, place: str) -> None:
        """`place` is the name below a pod's directory that shows that its launcher is there."""
        self._arrived = arrived
        self._pods = pods
        self._place = place
        self._expected: dict[str, float] = {}
        self._any = asyncio.Event()

    def expect(self, pod_uid: str) -> None:
        """A pod has come to this node, and its launcher has not started as far as anybody knows."""
        self._expected.setdefault(pod_uid, time.monotonic())
        self._any.set()

    def forget(self, pod_uid: str) -> None:
        """The pod is known to have started, or is gone."""
        self._expected.pop(pod_uid, None)

    async def run(self) -> None:
        """Looks until cancelled, while anybody is expected."""
        while True:
            await self._any.wait()
            for pod_uid in list(self._expected):
                if os.path.lexists(self._pods / pod_uid / self._place):
                    self.forget(pod_uid)
                    self._arrived(pod_uid)
            if not self._expected:
                self._any.clear()
                continue
            latest = max(self._expected.values())
            await asyncio.sleep(_EAGER_PAUSE if time.monotonic() - latest < _SOON else _PATIENT_PAUSE)
