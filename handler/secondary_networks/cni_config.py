"""The CNI configuration of a NetworkAttachmentDefinition, and the input of each of its plugins. Pure.

The definition's author is untrusted: plugin types must be bare file names, network names are restricted, and keys that
only a runtime may set (prevResult, runtimeConfig) are dropped.
Source: CNI specification 1.1.0, sections "Network configuration format" and "Derivation of execution configuration".
"""

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from api.errors import NetworkError
from api.k8s.meta import Json
from api.network_attachments import NetworkAttachmentDefinition, Selection

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
DEFAULT_VERSION = "0.3.1"
_PREVIOUS_IN_DEL = ("0.4.0", "1.0.0", "1.1.0")
MAX_BYTES = 64 << 10
MAX_PLUGINS = 16
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
"""Valid network name: plugins derive file names from it."""
PLUGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*(\.[A-Za-z0-9_\-]+)*")
"""Valid plugin file name: no slash, no leading dot, no two dots in a row."""


FREE_ARGS = frozenset({"mac", "ips", "interface"})
"""`cni-args` keys that a pod's author may always set; others must be in the plugin's `allowedArgs`."""


@dataclass(frozen=True)
class CniNetwork:
    """A validated configuration. `source` names its origin in messages."""

    source: str
    name: str
    version: str
    plugins: tuple[Json, ...]

    def kind(self, place: int) -> str:
        """The type (file name) of a plugin."""
        return str(self.plugins[place]["type"])


def parse(nad: NetworkAttachmentDefinition) -> CniNetwork:
    """The configuration of a definition. Raises NetworkError, which names definition and field."""
    source = f"network {nad.metadata.namespace}/{nad.metadata.name}"
    text = (nad.spec.config or "").strip()
    if not text:
        raise NetworkError(
            f"{source}: spec.config is empty; it must hold the CNI configuration (no file of the node is used)"
        )
    if len(text.encode()) > MAX_BYTES:
        raise NetworkError(f"{source}: spec.config is larger than {MAX_BYTES >> 10} KiB")
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise NetworkError(f"{source}: spec.config is not JSON: {error}") from error
    return checked(source, nad.metadata.name or "", document)


def checked(source: str, default_name: str, document: Any) -> CniNetwork:
    """The network of a decoded configuration. Raises NetworkError."""
    if not isinstance(document, dict):
        raise NetworkError(f"{source}: spec.config must be a JSON object")
    name = document.get("name") or default_name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise NetworkError(f"{source}: name in spec.config must be at most 128 letters, digits, '_', '.' or '-'")
    version = document.get("cniVersion") or DEFAULT_VERSION
    if version not in VERSIONS:
        raise NetworkError(
            f"{source}: cniVersion in spec.config is {str(version)[:40]!r}; supported: {', '.join(VERSIONS)}"
        )
    plugins = document.get("plugins", [document])
    if not isinstance(plugins, list) or not 0 < len(plugins) <= MAX_PLUGINS:
        raise NetworkError(f"{source}: plugins in spec.config must be a list of 1 to {MAX_PLUGINS} plugins")
    return CniNetwork(source, name, version, tuple(_plugin(source, place, each) for place, each in enumerate(plugins)))


def _plugin(source: str, place: int, plugin: Any) -> Json:
    kind = plugin.get("type") if isinstance(plugin, dict) else None
    if not isinstance(kind, str) or len(kind) > 128 or not PLUGIN.fullmatch(kind):
        raise NetworkError(
            f"{source}: type of plugin {place} in spec.config must be the file name of a CNI plugin, without a path"
        )
    capabilities = plugin.get("capabilities")
    if capabilities is not None and not isinstance(capabilities, dict):
        raise NetworkError(f"{source}: capabilities of plugin {place} ({kind}) must be an object")
    arguments = plugin.get("args")
    if arguments is not None and not isinstance(arguments, dict):
        raise NetworkError(f"{source}: args of plugin {place} ({kind}) must be an object")
    allowed = plugin.get("allowedArgs")
    if allowed is not None and not (isinstance(allowed, list) and all(isinstance(each, str) for each in allowed)):
        raise NetworkError(f"{source}: allowedArgs of plugin {place} ({kind}) must be a list of names")
    return dict(plugin)


def for_add(network: CniNetwork, place: int, selection: Selection, previous: Json | None) -> bytes:
    """Standard input of a plugin's ADD; `previous` is the result of the plugin before it."""
    return _input(network, place, selection, previous)


def for_del(network: CniNetwork, place: int, selection: Selection, result: Json | None) -> bytes:
    """Standard input of a plugin's DEL; `result` is that of the whole chain's ADD, if it completed."""
    return _input(network, place, selection, result if network.version in _PREVIOUS_IN_DEL else None)


def _input(network: CniNetwork, place: int, selection: Selection, previous: Json | None) -> bytes:
    plugin = network.plugins[place]
    ours = ("cniVersion", "name", "prevResult", "runtimeConfig", "capabilities", "plugins")
    given = {key: value for key, value in plugin.items() if key not in ours}
    given |= {"cniVersion": network.version, "name": network.name}
    if runtime := _runtime(plugin.get("capabilities") or {}, selection):
        given["runtimeConfig"] = runtime
    if asked := {key: value for key, value in (selection.cniArgs or {}).items() if key in _allowed(plugin)}:
        arguments = given.get("args") or {}
        theirs = arguments.get("cni")
        given["args"] = arguments | {"cni": (theirs if isinstance(theirs, dict) else {}) | asked}
    if previous is not None:
        given["prevResult"] = previous
    return msgspec.json.encode(given)


def _allowed(plugin: Json) -> frozenset[str]:
    return FREE_ARGS | frozenset(plugin.get("allowedArgs") or ())


def _runtime(capabilities: Json, selection: Selection) -> Json:
    wanted: Json = {}
    if selection.mac and capabilities.get("mac") is True:
        wanted["mac"] = selection.mac
    if selection.ips and capabilities.get("ips") is True:
        wanted["ips"] = list(selection.ips)
    return wanted


def faults(network: CniNetwork, selection: Selection, for_guest: bool) -> str:
    """Why the network cannot satisfy the pod's request; empty if it can. A MAC is also passed in CNI_ARGS.

    `for_guest`: whether a guest takes over the interface.
    """
    if selection.ips and not any((each.get("capabilities") or {}).get("ips") is True for each in network.plugins):
        return f'{network.source}: the pod requests addresses (ips), but no plugin declares the capability "ips"'
    allowed = frozenset[str]().union(*(_allowed(each) for each in network.plugins))
    if refused := sorted(set(selection.cniArgs or ()) - allowed):
        return (
            f"{network.source}: the pod's cni-args set {refused[0][:80]!r}, which the network does not allow; to allow "
            "it, add it to allowedArgs of a plugin in spec.config"
        )
    if for_guest and any(_ipam(each) == "dhcp" for each in network.plugins):
        # The dhcp daemon cannot renew through a bridge port, and sets the interface down when the lease expires.
        return (
            f"{network.source}: ipam type dhcp in spec.config is not supported for VMs: the guest could not "
            "renew the lease; remove ipam, and the guest uses the network's DHCP server"
        )
    return ""


def _ipam(plugin: Json) -> Any:
    ipam = plugin.get("ipam")
    return ipam.get("type") if isinstance(ipam, dict) else None
