"""Runs the plugin chain of a CNI network configuration, in the same way as libcni.

ADD runs the plugins in order, each with the result of the one before; DEL runs all of them in reverse order, regardless
of errors. Source: CNI specification 1.1.0, section "Execution protocol"; libcni's `api.go` for the order.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from api.errors import NetworkError
from api.k8s.meta import Json
from api.network_attachments import Selection
from handler.launchers import reports
from handler.secondary_networks import cni_config
from handler.secondary_networks.cni_config import CniNetwork
from handler.secondary_networks.cni_exec import CniHost, PluginMissing
from kit.child import ChildResult

_MAX_MESSAGE = 600


@dataclass(frozen=True)
class PodSandbox:
    """The pod to attach. `netns`: descriptor of its network namespace, None if that is gone."""

    namespace: str
    name: str
    uid: str
    netns: int | None = None

    @property
    def path(self) -> str:
        """Path of the namespace for a plugin on the host. Uses the descriptor: a PID may have been reused."""
        return "" if self.netns is None else f"/proc/{os.getpid()}/fd/{self.netns}"


async def require(host: CniHost, network: CniNetwork) -> None:
    """Raises NetworkError if a plugin is missing on the node: checked before ADD changes anything."""
    kinds = [network.kind(place) for place in range(len(network.plugins))]
    try:
        missing = await host.missing(kinds)
    except OSError as error:
        raise NetworkError(f"{network.source}: cannot list the node's CNI plugins: {error.strerror}") from error
    if missing:
        raise NetworkError(_not_there(f"{network.source}: plugin {missing[0]}", host))


async def add(host: CniHost, network: CniNetwork, selection: Selection, home: PodSandbox) -> Json:
    """Run ADD; returns the last plugin's result. Raises NetworkError, after which `delete` must be called."""
    result: Json | None = None
    for place in range(len(network.plugins)):
        stdin = cni_config.for_add(network, place, selection, result)
        answer = await _call(host, network, place, "ADD", selection, home, stdin)
        if not isinstance(answer, dict):
            raise NetworkError(f"{network.source}: plugin {network.kind(place)} printed no result")
        result = answer
    return result or {}


async def delete(
    host: CniHost, network: CniNetwork, selection: Selection, home: PodSandbox, result: Json | None
) -> None:
    """Run DEL; `result` is that of `add`, if it completed. Raises NetworkError after running all plugins."""
    first: NetworkError | None = None
    for place in reversed(range(len(network.plugins))):
        stdin = cni_config.for_del(network, place, selection, result)
        try:
            await _call(host, network, place, "DEL", selection, home, stdin)
        except NetworkError as error:
            first = first or error
    if first is not None:
        raise first


async def _call(
    host: CniHost, network: CniNetwork, place: int, command: str, selection: Selection, home: PodSandbox, stdin: bytes
) -> Any:
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": home.uid,
        "CNI_NETNS": home.path,
        "CNI_IFNAME": selection.interface,
        "CNI_ARGS": ";".join(_arguments(selection, home)),
    }
    kind, where = network.kind(place), f"{network.source}: plugin {network.kind(place)}"
    try:
        outcome = await host.run(kind, environment, stdin)
    except PluginMissing:
        raise NetworkError(_not_there(where, host)) from None
    except OSError as error:
        raise NetworkError(f"{where} cannot be run: {error.strerror or error}") from error
    return _answer(where, command, outcome)


def _not_there(where: str, host: CniHost) -> str:
    return f"{where} is not on this node: no executable of that name in {' or '.join(host.plugins)}"


def _arguments(selection: Selection, home: PodSandbox) -> Iterator[str]:
    # Names are DNS names and the MAC was validated: they contain no semicolon.
    yield "IgnoreUnknown=1"
    yield f"K8S_POD_NAMESPACE={home.namespace}"
    yield f"K8S_POD_NAME={home.name}"
    yield f"K8S_POD_INFRA_CONTAINER_ID={home.uid}"
    yield f"K8S_POD_UID={home.uid}"
    if selection.mac:
        yield f"MAC={selection.mac}"


def _answer(where: str, command: str, outcome: ChildResult) -> Any:
    """The JSON printed by a plugin, None if it printed nothing. Raises NetworkError with the plugin's message."""
    if outcome.trouble:
        raise NetworkError(f"{where} {outcome.trouble}")
    document: Any = None
    if outcome.stdout.strip():
        try:
            document = msgspec.json.decode(outcome.stdout)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            document = None if outcome.code or command == "DEL" else NetworkError(f"{where} did not print JSON")
    if isinstance(document, NetworkError):
        raise document
    if outcome.code == 0:
        return document
    raise NetworkError(f"{where} {_failure(document, outcome)}")


def _failure(document: Any, outcome: ChildResult) -> str:
    if isinstance(document, dict) and isinstance(document.get("msg"), str):
        details = document.get("details")
        more = f" ({details})" if isinstance(details, str) and details else ""
        code = document.get("code")
        number = f" (CNI error {code})" if isinstance(code, int) else ""
        return f"failed: {reports.text(document['msg'] + more, _MAX_MESSAGE)}{number}"
    said = (outcome.stderr or outcome.stdout).decode("utf-8", "replace")
    return f"failed with exit code {outcome.code}: {reports.text(said, _MAX_MESSAGE) or 'no output'}"
