"""Options in request bodies, as in KubeVirt. Unknown fields are ignored."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api import names
from api.k8s.meta import Duration, Int64


class _Options(msgspec.Struct, frozen=True, gc=False):
    apiVersion: str | None = None
    kind: str | None = None
    dryRun: list[str] | None = None
    """`["All"]`: validate the request without executing it."""


class StartOptions(_Options, frozen=True, gc=False):
    """Options of start."""

    paused: bool | None = None
    """Start with paused CPUs, until `unpause`."""


class StopOptions(_Options, frozen=True, gc=False):
    """Options of stop."""

    gracePeriod: Annotated[int, Meta(ge=0, le=names.MAX_GRACE_SECONDS)] | None = None
    """Seconds for the guest to shut down; 0 powers it off immediately."""


class RestartOptions(_Options, frozen=True, gc=False):
    """Options of restart."""

    gracePeriodSeconds: Int64 | None = None
    """0 powers the guest off immediately; no other value is supported."""


class MigrateOptions(_Options, frozen=True, gc=False):
    """Options of migrate."""

    addedNodeSelector: dict[str, str] | None = None
    """Labels that the target node must have."""


class PauseOptions(_Options, frozen=True, gc=False):
    """Options of pause."""


class UnpauseOptions(_Options, frozen=True, gc=False):
    """Options of unpause."""


class FenceOptions(_Options, frozen=True, gc=False):
    """Options of fence."""

    pods: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=16)] = []
    """UIDs of the terminated pods: all that status.activePods of the VirtualMachineInstance lists with a node."""


class FreezeUnfreezeTimeout(msgspec.Struct, frozen=True, gc=False):
    """Options of freeze."""

    unfreezeTimeout: Duration | Annotated[int, Meta(ge=0)] | None = None
    """Time until the file systems are thawed automatically; 0 means 5 minutes."""


class MemoryDump(_Options, frozen=True, gc=False):
    """Options of memorydump."""

    claimName: Annotated[str, Meta(pattern="^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")] | None = None
    """PersistentVolumeClaim for the dump."""


class MachineToExpand(msgspec.Struct, frozen=True, gc=False):
    """A VirtualMachine. The schema of its spec is in the CRD."""

    spec: dict[str, Any]
    apiVersion: str | None = None
    kind: str | None = None
    metadata: dict[str, Any] | None = None


class Ignored(msgspec.Struct, frozen=True, gc=False):
    """An ignored body."""


def schema(kind: type[Any]) -> dict[str, Any]:
    """The OpenAPI schema of options, restricted to OpenAPI 2 keywords: kubectl refuses others."""
    _, found = msgspec.json.schema_components([kind], ref_template="#/{name}")
    whole = found[kind.__name__]
    properties = {name: _plain(each) for name, each in whole["properties"].items()}
    required = {"required": whole["required"]} if whole.get("required") else {}
    return {"type": "object", "description": whole["description"], "properties": properties, **required}


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """Drops null types and null defaults, which mean optional; of several types keeps the first."""
    chosen = next((each for each in found.get("anyOf", ()) if each.get("type") != "null"), found)
    dropped = {"default", "minimum", "maximum"} if "format" in chosen else {"default"}
    return {key: value for key, value in chosen.items() if key not in dropped}
