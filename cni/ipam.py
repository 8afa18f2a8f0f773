"""Delegates IPAM to host-local, static, dhcp or any other IPAM plugin in CNI_PATH.

The plugin runs in the caller's mount namespace, the host's, so that CNI_PATH and the plugin's files are the runtime's.
Output and run time are limited. Source: CNI specification 1.1.0, section 4.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from cni import errors, spec
from cni.errors import CniError
from cni.invocation import Invocation, OwnNamespaces, identity
from kit import child, proc
from kit.child import ChildResult

SECONDS = 60
BY_INTERFACE = frozenset({"dhcp"})
"""Plugins that release an address through the container's interface, which must exist at DEL."""
_NEW = "1.1.0"
_NEW_VERBS = ("GC", "STATUS")


def add(kind: str, call: Invocation, version: str, own: OwnNamespaces) -> spec.CniResult:
    """Run ADD. Raises CniError: the plugin's own, or 102."""
    answer = run(kind, "ADD", call, own)
    if not isinstance(answer, dict):
        raise CniError(errors.DELEGATE, f"the IPAM plugin {kind} printed no result")
    found = spec.result(answer, version, errors.DELEGATE, f"what the IPAM plugin {kind} printed")
    if not found.ips:
        with contextlib.suppress(CniError):
            run(kind, "DEL", call, own)
        raise CniError(errors.DELEGATE, f"the IPAM plugin {kind} returned no address")
    return found


def run(kind: str, command: str, call: Invocation, own: OwnNamespaces) -> Any:
    """Run a command; returns its JSON, None if there is none or the plugin predates the command. Raises CniError."""
    answer = _run(kind, command, call, own, call.stdin)
    if _refuses_version(answer):
        # The plugin is older than the configuration's version: the previous version differs in nothing used here.
        answer = _run(kind, command, call, own, _older(call.stdin))
    code, parsed = answer
    if code == 0:
        return parsed
    if command in _NEW_VERBS and not _is_new(kind, call, own):
        return None
    if isinstance(parsed, dict) and isinstance(parsed.get("code"), int):
        raise CniError(parsed["code"], f"IPAM plugin {kind}: {parsed.get('msg')}", str(parsed.get("details") or ""))
    raise CniError(errors.DELEGATE, f"the IPAM plugin {kind} failed with exit code {code}", str(parsed)[:1000])


def _refuses_version(answer: tuple[int, Any]) -> bool:
    code, parsed = answer
    return code != 0 and isinstance(parsed, dict) and parsed.get("code") == errors.VERSION


def _is_new(kind: str, call: Invocation, own: OwnNamespaces) -> bool:
    """Whether the plugin supports GC and STATUS; assumed if it does not report its versions."""
    try:
        _, parsed = _run(kind, "VERSION", call, own, msgspec.json.encode({"cniVersion": _NEW}))
    except CniError:
        return True
    supported = parsed.get("supportedVersions") if isinstance(parsed, dict) else None
    return not isinstance(supported, list) or _NEW in supported


def _older(stdin: bytes) -> bytes:
    conf = msgspec.json.decode(stdin)
    if conf.get("cniVersion") == _NEW:
        conf["cniVersion"] = "1.0.0"
    return msgspec.json.encode(conf)


def _run(kind: str, command: str, call: Invocation, own: OwnNamespaces, stdin: bytes) -> tuple[int, Any]:
    environment = {key: value for key, value in call.environment.items() if key.startswith("CNI_")}
    environment |= {"CNI_COMMAND": command, "PATH": child.PATH}

    def body() -> ChildResult:
        # The child inherits this thread's root and mounts.
        place = f"/proc/{call.peer}/ns/mnt"
        if identity(place) != own.mount:
            with proc.closing(os.open(place, os.O_RDONLY | os.O_CLOEXEC)) as namespace:
                proc.enter_mounts(namespace)
        return child.run(_find(kind, call.path), environment, stdin, SECONDS)

    try:
        result = proc.isolated_now(body)
    except OSError as error:
        raise CniError(errors.DELEGATE, f"the IPAM plugin {kind} cannot be run: {error}") from None
    if result.trouble:
        raise CniError(errors.DELEGATE, f"the IPAM plugin {kind} {result.trouble}")
    if result.code and not result.stdout.strip():
        return result.code, result.stderr.decode("utf-8", "replace")
    try:
        return result.code, msgspec.json.decode(result.stdout) if result.stdout.strip() else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CniError(errors.DELEGATE, f"the IPAM plugin {kind} did not print JSON: {error}") from None


def _find(kind: str, path: tuple[str, ...]) -> str:
    for folder in path:
        candidate = f"{folder}/{kind}"
        if Path(candidate).is_file() and os.access(candidate, os.X_OK):
            return candidate
    raise CniError(
        errors.DELEGATE, f"the IPAM plugin {kind} is in none of the directories of CNI_PATH: {':'.join(path)[:500]}"
    )
