"""Watches QEMU's process by a pidfd: libvirt's daemon may be down when QEMU exits."""

import asyncio
import os
from collections.abc import Callable

from kit.memory import settle

SETTLED_SECONDS = 2.0
"""Delay before memory needed only by the start is released."""


class QemuWatcher:
    """Calls `ended` when a watched process exits."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self._pid = 0

    def watch(self, pid: int) -> None:
        """Watch this process too; no-op for 0 and for a process watched already."""
        if not pid or pid == self._pid:
            return
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            return
        self._pid = pid
        loop = asyncio.get_running_loop()
        loop.call_later(SETTLED_SECONDS, settle)

        def ended() -> None:
            loop.remove_reader(handle)
            os.close(handle)
            self._ended()

        loop.add_reader(handle, ended)
