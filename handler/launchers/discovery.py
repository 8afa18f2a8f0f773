"""Discovers started launchers by their FIFO, up to a second before kubelet reports the container as running.

Only the existence of the file is checked, for expected pods; the listener is verified when connecting
(`handler.launchers.connection`).
"""

import asyncio
import os
import pathlib
import time
from collections.abc import Callable

_SOON, _EAGER_PAUSE, _PATIENT_PAUSE = 15.0, 0.02, 0.25


class LauncherDiscovery:
    """Calls `arrived` with the UID of an expected pod once its launcher's FIFO exists."""

    def __init__(self, arrived: Callable[[str], None], pods: pathlib.Path, place: str) -> None:
        """`place`: path below a pod's directory whose existence shows that the launcher has started."""
        self._arrived = arrived
        self._pods = pods
        self._place = place
        self._expected: dict[str, float] = {}
        self._any = asyncio.Event()

    def expect(self, pod_uid: str) -> None:
        """Watch for a pod of this node whose launcher is not known to have started."""
        self._expected.setdefault(pod_uid, time.monotonic())
        self._any.set()

    def forget(self, pod_uid: str) -> None:
        """Stop watching for a pod that has started or was deleted."""
        self._expected.pop(pod_uid, None)

    async def run(self) -> None:
        """Poll until cancelled, while pods are expected."""
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
