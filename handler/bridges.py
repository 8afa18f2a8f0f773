"""The node's bridges, offered to kubelet: what asks for `bridge.network.kubevirt.io/br1` goes where there is a br1.

A bridge is offered many times over, for it has as many ports as one likes, and a pod that gets it gets nothing: its
network's definition (annotation k8s.v1.cni.cncf.io/resourceName) only has it asked for. Bridges come and go: one that
is gone is withdrawn, and pods that run on it are left alone.
"""

import asyncio
import pathlib
import re
from collections.abc import Callable

from handler import kvm
from handler.deviceplugin import DIRECTORY, Plugin
from kit import log

PREFIX = "bridge.network.kubevirt.io"
DEVICES = pathlib.Path("/proc/1/root/sys/class/net")
"""The devices of the host's network: /sys shows those of the namespace that it was mounted in."""
POLL_SECONDS = 1.0
MOST = 256
"""Bridges that are offered; each costs a socket of ours and a resource of the node's."""
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.\-]*[A-Za-z0-9])?")
"""What may stand behind the slash of a resource's name."""

_log = log.logger(component="bridges")


def bridges(devices: pathlib.Path = DEVICES) -> set[str]:
    """The names of the bridges among the devices. Empty when they cannot be looked at."""
    try:
        return {device.name for device in devices.iterdir() if (device / "bridge").is_dir()}
    except OSError:
        return set()


class Bridges:
    """Offers each bridge of the node as long as it is there."""

    def __init__(
        self,
        seen: Callable[[], set[str]] = bridges,
        directory: pathlib.Path = DIRECTORY,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._seen = seen
        self._directory = directory
        self._poll = poll_seconds
        self._plugins: dict[str, asyncio.Task[None]] = {}
        self._odd: set[str] = set()

    @property
    def offered(self) -> set[str]:
        """The bridges that are offered now."""
        return set(self._plugins)

    async def run(self) -> None:
        """Follows the node's bridges until cancelled."""
        try:
            while True:
                await self._follow(self._usable(await asyncio.to_thread(self._seen)))
                await asyncio.sleep(self._poll)
        finally:
            await self._follow(set())

    def _usable(self, found: set[str]) -> set[str]:
        named = {name for name in found if _NAME.fullmatch(name)}
        usable = set(sorted(named, key=lambda name: (name not in self._plugins, name))[:MOST])
        for name in sorted(found - usable - self._odd):
            why = f"more than {MOST} bridges" if name in named else "its name cannot be that of a resource"
            _log.warning("A bridge is not offered to VMs", bridge=name, why=why)
        self._odd = found - usable
        return usable

    async def _follow(self, wanted: set[str]) -> None:
        for name in sorted(wanted - set(self._plugins)):
            _log.info("Offering a bridge", bridge=name)
            self._plugins[name] = asyncio.create_task(self._serve(name), name=f"bridge-{name}")
        gone = [(name, self._plugins.pop(name)) for name in sorted(set(self._plugins) - wanted)]
        for name, task in gone:
            _log.info("A bridge is gone, or we are going: no longer offering it", bridge=name)
            task.cancel()
        await asyncio.gather(*(task for _, task in gone), return_exceptions=True)

    async def _serve(self, name: str) -> None:
        plugin = Plugin(f"{PREFIX}/{name}", f"bridge-{name}", kvm.Verdict(True, f"{name} is there"), self._directory)
        while True:
            try:
                await plugin.run()
            except OSError as error:
                _log.warning("Cannot offer a bridge: trying again", bridge=name, why=error.strerror)
                await asyncio.sleep(self._poll)
