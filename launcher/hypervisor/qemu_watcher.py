"""QEMU's process, watched by the kernel: libvirt's daemon may be down at the moment of its end."""

import asyncio
import os
from collections.abc import Callable

from kit.memory import settle

SETTLED_SECONDS = 2.0
"""After the start of QEMU, or of this server, all is as it will stay."""


class QemuWatcher:
    """Calls `ended` when a process that it watches has ended."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self._pid = 0

    def watch(self, pid: int) -> None:
        """Watches this process too, unless it does already, or there is none."""
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
