"""The API server's audit log as a list of calls. Pure but for `tail`."""

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
    """One request of one of hyperlet's components. `resource` has the subresource behind a slash."""

    component: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int

    @property
    def kind(self) -> str:
        """Whether it counts for a VM, and if not, why: only what goes on with no VM at all does not."""
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
        """What the breakdown is by."""
        return self.component, self.verb, self.resource


def component(event: dict[str, Any]) -> str:
    """The component that sent a request: by its user agent, else by its service account; empty for anybody else."""
    found = _AGENT.match(event.get("userAgent", ""))
    if found:
        return found.group(1)
    prefix = f"system:serviceaccount:{SYSTEM}:"
    user = str(event.get("user", {}).get("username", ""))
    return user.removeprefix(prefix).removeprefix("hyperlet-") if user.startswith(prefix) else ""


def parse(lines: Iterable[str]) -> list[AuditedCall]:
    """The components' calls. A request counts where it ends, a watch where it begins."""
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
    """How many calls of each component, verb and resource."""
    return Counter(call.what for call in calls)


class Log:
    """The log from a moment on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = path.stat().st_size

    def calls(self) -> list[AuditedCall]:
        """What was logged since this object was made. Raises OSError when the log began anew: too few would count."""
        with self.path.open("rb") as stream:
            if self.path.stat().st_size < self._offset:
                raise OSError(f"{self.path} began anew in the middle of a measurement: measure again")
            stream.seek(self._offset)
            return parse(stream.read().decode("utf-8", "replace").splitlines())
