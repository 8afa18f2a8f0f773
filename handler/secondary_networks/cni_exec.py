"""Runs CNI plugins in the host's namespaces, and reads the host's CNI configuration.

The handler's pod shares the host's PID namespace, so PID 1's namespaces are the host's. A plugin is forked from a
thread that has entered them; it sees the host's files and devices, and none of the handler's.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from kit import child, proc
from kit.child import ChildResult

T = TypeVar("T")
SECONDS = 100.0
"""Timeout of one plugin; cnv-bridge waits 90 s for its daemon, and an IPAM plugin 60 s for a DHCP server."""
STDERR_BYTES = 4096
"""What is kept of a plugin's standard error: its end."""
_MULTUS = ("multus", "multus-shim")
_BRIDGING = ("bridge", "cnv-bridge")
_DEFAULT_BRIDGE = "cni0"
"""The default of both plugins when the configuration names no bridge."""
_MAX_FILE = 1 << 20


class PluginMissing(Exception):
    """No CNI directory of the host has an executable of this name."""


@dataclass(frozen=True)
class NodeCniConfig:
    """The host's CNI configuration: the pod network's name, all network names, and whether Multus is configured."""

    default: str
    names: frozenset[str]
    multus: bool
    bridges: frozenset[str] = frozenset()
    """Bridges used by the pod network's plugins."""


@dataclass(frozen=True)
class CniHost:
    """Paths of the host's namespaces, plugins and configurations; the first directory that has a plugin wins."""

    mounts: str = "/proc/1/ns/mnt"
    network: str = "/proc/1/ns/net"
    plugins: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    configurations: tuple[str, ...] = (
        "/etc/cni/net.d",
        "/etc/kubernetes/cni/net.d",
        "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    )

    @classmethod
    def configured(cls) -> "CniHost":
        """With directories from HYPERLET_CNI_BIN and HYPERLET_CNI_CONF (separated by colons), if set."""
        usual = cls()
        return cls(
            plugins=_folders("HYPERLET_CNI_BIN") or usual.plugins,
            configurations=_folders("HYPERLET_CNI_CONF") or usual.configurations,
        )

    async def run(
        self, plugin: str, environment: dict[str, str], stdin: bytes, seconds: float = SECONDS
    ) -> ChildResult:
        """Run a plugin until it exits or the timeout kills it. Raises PluginMissing, OSError."""
        given = environment | {"PATH": child.PATH, "CNI_PATH": ":".join(self.plugins)}

        def body() -> ChildResult:
            self._enter()
            program = _find(self.plugins, plugin)
            if program is None:
                raise PluginMissing(plugin)
            return child.run(program, given, stdin, seconds)

        result = await proc.isolated(body)
        return replace(result, stderr=result.stderr[-STDERR_BYTES:])

    async def missing(self, plugins: Sequence[str]) -> list[str]:
        """Those of the plugins that are missing on the host. Raises OSError."""
        return await self._inside(lambda: [each for each in plugins if _find(self.plugins, each) is None])

    async def node(self) -> NodeCniConfig:
        """The host's current configuration. Unreadable and invalid files are skipped."""
        return await self._inside(lambda: _summary(self.configurations))

    async def _inside(self, work: Callable[[], T]) -> T:
        def body() -> T:
            self._enter()
            return work()

        return await proc.isolated(body)

    def _enter(self) -> None:
        """Move the calling thread into the host's namespaces. It must not import anything afterwards."""
        network = os.open(self.network, os.O_RDONLY | os.O_CLOEXEC)
        with proc.closing(network), proc.closing(os.open(self.mounts, os.O_RDONLY | os.O_CLOEXEC)) as mounts:
            proc.setns(network, proc.CLONE_NEWNET)
            proc.enter_mounts(mounts)


def _folders(variable: str) -> tuple[str, ...]:
    return tuple(each for each in os.environ.get(variable, "").split(":") if each.startswith("/"))


def _find(folders: Sequence[str], plugin: str) -> str | None:
    places = (f"{folder}/{plugin}" for folder in folders)
    return next((path for path in places if os.path.isfile(path) and os.access(path, os.X_OK)), None)  # noqa: PTH113


def _summary(folders: Sequence[str]) -> NodeCniConfig:
    default, names, multus, bridges = "", set(), False, set()
    for folder in folders:
        for document in _documents(folder):
            name = document.get("name")
            listed = document.get("plugins")
            plugins = [
                each for each in [document, *(listed if isinstance(listed, list) else [])] if isinstance(each, dict)
            ]
            multus = multus or any(plugin.get("type") in _MULTUS for plugin in plugins)
            if isinstance(name, str) and name:
                names.add(name)
                if not default:
                    default, bridges = name, {found for plugin in plugins if (found := _bridge(plugin))}
    return NodeCniConfig(default, frozenset(names), multus, frozenset(bridges))


def _bridge(plugin: dict[str, Any]) -> str:
    """The bridge that a plugin attaches pods to; empty if none."""
    kind, delegate = plugin.get("type"), plugin.get("delegate")
    if kind == "flannel":  # delegates to the plugin `bridge` unless `delegate` names another
        plugin = {"type": "bridge"} | (delegate if isinstance(delegate, dict) else {})
    if plugin.get("type") not in _BRIDGING:
        return ""
    name = plugin.get("bridge") or _DEFAULT_BRIDGE
    return name if isinstance(name, str) else ""


def _documents(folder: str) -> list[dict[str, Any]]:
    try:
        files = sorted(each for each in os.listdir(folder) if each.endswith((".conf", ".conflist", ".json")))  # noqa: PTH208
    except OSError:
        return []
    found = []
    for name in files:
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeError, RecursionError):
            with pathlib.Path(folder, name).open("rb") as stream:
                document = msgspec.json.decode(stream.read(_MAX_FILE))
            if isinstance(document, dict):
                found.append(document)
    return found
