"""Device plugins of the node's bridges: `bridge.network.kubevirt.io/br1` is allocatable on nodes that have a br1.

Each bridge is advertised with many devices, since its ports are not limited. Allocation gives the pod nothing: the
resource only makes the scheduler choose a node with that bridge (annotation k8s.v1.cni.cncf.io/resourceName of the
network definition). A removed bridge is withdrawn; running pods are not affected.

The bridge of the pod network is never advertised: it would put VMs next to every pod of the node, past the pod
network's addresses and policies. The administrator selects the others (`api.bridges`).
"""

import asyncio
import pathlib
import re
from collections.abc import Awaitable, Callable

from api import names
from api.bridges import ANNOTATIONS, BridgePolicy
from api.k8s.objects import K8sObject
from api.k8s.resource import Resource
from handler.devices import kvm_probe
from handler.devices.device_plugin import DIRECTORY, DevicePluginServer
from handler.secondary_networks.cni_exec import CniHost
from kit import log
from kit.tasks import BackgroundTasks

PREFIX = "bridge.network.kubevirt.io"
DEVICES = pathlib.Path("/proc/1/root/sys/class/net")
"""Network devices of the host: /sys shows those of the namespace that it was mounted in."""
OWN_DEVICES = pathlib.Path("/sys/class/net")
"""Network devices of this pod."""
POLL_SECONDS = 1.0
CONFIGURATION_SECONDS = 30.0
MOST = 256
"""Maximum number of advertised bridges; each costs a socket and a resource of the node."""
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.\-]*[A-Za-z0-9])?")
"""Valid resource name after the slash."""

_log = log.logger(component="bridges")


class KubeVirtAnnotations(K8sObject):
    """The KubeVirt object; only its annotations are read."""

    RESOURCE = Resource(names.GROUP, names.VERSION, names.KIND_KUBEVIRT, names.PLURAL_KUBEVIRT)


def node_bridges(devices: pathlib.Path = DEVICES) -> set[str]:
    """The names of the host's bridges; empty if they cannot be listed."""
    try:
        return {device.name for device in devices.iterdir() if (device / "bridge").is_dir()}
    except OSError:
        return set()


def pod_bridges(devices: pathlib.Path = DEVICES, own: pathlib.Path = OWN_DEVICES) -> set[str]:
    """The bridges that this pod's own interfaces are attached to: those of the pod network.

    `iflink` of an interface is the index of its peer, which is in the host's namespace and has its bridge as
    `master`.
    """
    try:
        ends = {
            _number(each / "iflink") for each in own.iterdir() if _number(each / "iflink") != _number(each / "ifindex")
        }
        found = [each for each in devices.iterdir() if _number(each / "ifindex") in ends and (each / "master").exists()]
        return {(each / "master").readlink().name for each in found if (each / "brport").exists()}
    except OSError:
        return set()


def _number(path: pathlib.Path) -> int:
    """A number from /sys; 0, which is no interface index, if it cannot be read."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _refusal(name: str, pods: frozenset[str], choice: BridgePolicy) -> str:
    """Why a bridge must not be advertised; empty if it may be."""
    if name in pods:
        return "it belongs to the pod network"
    if not choice.permits(name):
        return f"excluded by the annotations of the KubeVirt object ({', '.join(ANNOTATIONS)})"
    return "" if _NAME.fullmatch(name) else "its name is not valid in a resource name"


def _is_same(namespace: str, other: str) -> bool:
    return pathlib.Path(namespace).stat().st_ino == pathlib.Path(other).stat().st_ino


class PodNetworkBridges:
    """The bridges of the pod network, from this pod's interfaces and from the node's CNI configuration."""

    def __init__(self, host: CniHost, seconds: float = CONFIGURATION_SECONDS) -> None:
        self._host = host
        self._seconds = seconds
        self._configured: tuple[float, frozenset[str]] = (0.0, frozenset())

    async def bridges(self) -> frozenset[str]:
        """The current bridges. Raises OSError if the node's configuration cannot be read."""
        now = asyncio.get_running_loop().time()
        if self._configured[0] <= now:
            self._configured = (now + self._seconds, (await self._host.node()).bridges)
        if _is_same(self._host.network, "/proc/self/ns/net"):  # with hostNetwork, interfaces here are the node's
            return self._configured[1]
        return self._configured[1] | await asyncio.to_thread(pod_bridges)


class BridgePlugins:
    """Advertises each bridge of the node while it exists, is selected and is not the pod network's."""

    def __init__(
        self,
        seen: Callable[[], set[str]] = node_bridges,
        directory: pathlib.Path = DIRECTORY,
        poll_seconds: float = POLL_SECONDS,
        *,
        pod_network: Callable[[], Awaitable[frozenset[str]]],
        choice: Callable[[], BridgePolicy | None] = BridgePolicy,
    ) -> None:
        """`choice` returns None while unknown: nothing is advertised or withdrawn until then."""
        self._seen = seen
        self._pod_network = pod_network
        self._choice = choice
        self._directory = directory
        self._poll = poll_seconds
        self._plugins: dict[str, asyncio.Task[None]] = {}
        self._tasks = BackgroundTasks(log.task_failed)
        self._refused: dict[str, str] = {}

    @property
    def offered(self) -> set[str]:
        """The bridges that are currently advertised."""
        return set(self._plugins)

    async def run(self) -> None:
        """Follow the node's bridges until cancelled."""
        try:
            while True:
                if (choice := self._choice()) is not None:
                    await self._look(choice)
                await asyncio.sleep(self._poll)
        finally:
            await self._follow(set())

    async def _look(self, choice: BridgePolicy) -> None:
        try:
            pods = await self._pod_network()
        except OSError as error:
            _log.warning("Cannot read the node's CNI configuration, retrying", why=error.strerror or str(error))
            return
        await self._follow(self._usable(await asyncio.to_thread(self._seen), pods, choice))

    def _usable(self, found: set[str], pods: frozenset[str], choice: BridgePolicy) -> set[str]:
        refused = {name: why for name in found if (why := _refusal(name, pods, choice))}
        possible = sorted(found - set(refused), key=lambda name: (name not in self._plugins, name))
        refused |= dict.fromkeys(possible[MOST:], f"more than {MOST} bridges")
        for name, why in sorted(refused.items()):
            if self._refused.get(name) != why:
                _log.warning("Bridge is not advertised to kubelet", bridge=name, why=why)
        self._refused = refused
        return set(possible[:MOST])

    async def _follow(self, wanted: set[str]) -> None:
        # One that has ended, with an unhandled exception, is started again.
        self._plugins = {name: task for name, task in self._plugins.items() if not task.done()}
        for name in sorted(wanted - set(self._plugins)):
            _log.info("Advertising bridge", bridge=name)
            self._plugins[name] = self._tasks.start("bridge-plugin", self._serve(name), bridge=name)
        gone = [(name, self._plugins.pop(name)) for name in sorted(set(self._plugins) - wanted)]
        for name, task in gone:
            why = self._refused.get(name, "the bridge was removed, or the handler is stopping")
            _log.info("Withdrawing bridge", bridge=name, why=why)
            task.cancel()
        if gone:
            await asyncio.wait([task for _, task in gone])

    async def _serve(self, name: str) -> None:
        plugin = DevicePluginServer(
            f"{PREFIX}/{name}", f"bridge-{name}", kvm_probe.KvmProbe(True, f"{name} exists"), self._directory
        )
        while True:
            try:
                await plugin.run()
            except OSError as error:
                _log.warning("Cannot advertise bridge, retrying", bridge=name, why=error.strerror)
                await asyncio.sleep(self._poll)
