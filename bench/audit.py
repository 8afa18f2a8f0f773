"""Parses the API server's audit log into calls. Pure except for `Log`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.session import NAMESPACE, SYSTEM

_AGENT = re.compile(r"hyperlet-([a-z]+)")
COUNTED, ELSEWHERE, LEASE, HEARTBEAT, WATCH = "counted", "other namespaces", "lease", "heartbeat", "watch"


@dataclass(frozen=True)
class AuditedCall:
    """One request of a hyperlet component. `resource` includes the subresource after a slash."""

    component: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int

    @property
    def kind(self) -> str:
        """COUNTED if the call is caused by a VM, else the category of background calls."""
        if self.verb == "watch":
            return WATCH
        if self.resource == "leases":
            return LEASE
        if self.resource in ("nodes", "nodes/status") and self.verb in ("get", "patch", "update"):
            return HEARTBEAT
        if self.namespace and self.namespace != NAMESPACE:
            return ELSEWHERE
        return COUNTED

    @property
    def what(self) -> tuple[str, str, str]:
        """The key of the breakdown: component, verb and resource."""
        return self.component, self.verb, self.resource


def component(event: dict[str, Any]) -> str:
    """The component that sent a request, by user agent or service account; empty for other clients."""
    found = _AGENT.match(event.get("userAgent", ""))
    if found:
        return found.group(1)
    prefix = f"system:serviceaccount:{SYSTEM}:"
    user = str(event.get("user", {}).get("username", ""))
    return user.removeprefix(prefix).removeprefix("hyperlet-") if user.startswith(prefix) else ""


def parse(lines: Iterable[str]) -> list[AuditedCall]:
    """The components' calls. A request counts at its end, a watch at its start."""
    calls = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # the last line may be half written
            continue
        sender = component(event)
        end = "ResponseStarted" if event.get("verb") == "watch" else "ResponseComplete"
        if not sender or event.get("stage") != end:
            continue
        where = event.get("objectRef") or {}
        resource = where.get("resource") or event.get("requestURI", "?").split("?")[0]
        if where.get("subresource"):
            resource += "/" + where["subresource"]
        code = int(event.get("responseStatus", {}).get("code", 0))
        calls.append(
            AuditedCall(sender, event["verb"], resource, where.get("namespace", ""), where.get("name", ""), code)
        )
    return calls


def by_what(calls: Iterable[AuditedCall]) -> Counter[tuple[str, str, str]]:
    """Number of calls by component, verb and resource."""
    return Counter(call.what for call in calls)


class Log:
    """The part of the log that is written after construction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = path.stat().st_size

    def calls(self) -> list[AuditedCall]:
        """The calls logged since construction. Raises OSError if the log was rotated meanwhile."""
        with self.path.open("rb") as stream:
            if self.path.stat().st_size < self._offset:
                raise OSError(f"{self.path} was rotated during the measurement: measure again")
            stream.seek(self._offset)
            return parse(stream.read().decode("utf-8", "replace").splitlines())
