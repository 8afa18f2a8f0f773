"""The options that verbs take in their bodies, as published. Fields that are not known are skipped, as there."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api import names
from api.k8s.meta import Duration, Int64


class _Options(msgspec.Struct, frozen=True, gc=False):
    apiVersion: str | None = None
    kind: str | None = None
    dryRun: list[str] | None = None
    """`["All"]`: everything is checked and nothing is done."""


class StartOptions(_Options, frozen=True, gc=False):
    """Of start."""

    paused: bool | None = None
    """The guest waits for `unpause` before its first instruction."""


class StopOptions(_Options, frozen=True, gc=False):
    """Of stop."""

    gracePeriod: Annotated[int, Meta(ge=0, le=names.MAX_GRACE_SECONDS)] | None = None
    """Seconds until the guest is ended; 0 ends it at once."""


class RestartOptions(_Options, frozen=True, gc=False):
    """Of restart."""

    gracePeriodSeconds: Int64 | None = None
    """0 ends the guest at once; nothing else is supported."""


class MigrateOptions(_Options, frozen=True, gc=False):
    """Of migrate."""

    addedNodeSelector: dict[str, str] | None = None
    """Labels that the target node must have."""


class PauseOptions(_Options, frozen=True, gc=False):
    """Of pause."""


class UnpauseOptions(_Options, frozen=True, gc=False):
    """Of unpause."""


class FenceOptions(_Options, frozen=True, gc=False):
    """Of fence."""

    pods: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=16)] = []
    """UIDs of the pods that the word is given for: all that the instance's status.activePods lists with a node."""


class FreezeUnfreezeTimeout(msgspec.Struct, frozen=True, gc=False):
    """Of freeze."""

    unfreezeTimeout: Duration | Annotated[int, Meta(ge=0)] | None = None
    """After this the file systems thaw by themselves, whatever happens; 0: 5 minutes."""


class MemoryDump(_Options, frozen=True, gc=False):
    """Of memorydump."""

    claimName: Annotated[str, Meta(pattern="^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")] | None = None
    """Claim that takes the dump."""


class MachineToExpand(msgspec.Struct, frozen=True, gc=False):
    """A VirtualMachine. The custom resource's schema says what its spec may be."""

    spec: dict[str, Any]
    apiVersion: str | None = None
    kind: str | None = None
    metadata: dict[str, Any] | None = None


class Ignored(msgspec.Struct, frozen=True, gc=False):
    """A body that says nothing to us."""


def schema(kind: type[Any]) -> dict[str, Any]:
    """The OpenAPI schema of options, in the words that OpenAPI 2 has too: kubectl refuses a document with others."""
    _, found = msgspec.json.schema_components([kind], ref_template="#/{name}")
    whole = found[kind.__name__]
    properties = {name: _plain(each) for name, each in whole["properties"].items()}
    required = {"required": whole["required"]} if whole.get("required") else {}
    return {"type": "object", "description": whole["description"], "properties": properties, **required}


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """Without "or null" and the default null, which stand for "may be absent"; of several types the first."""
    chosen = next((each for each in found.get("anyOf", ()) if each.get("type") != "null"), found)
    dropped = {"default", "minimum", "maximum"} if "format" in chosen else {"default"}
    return {key: value for key, value in chosen.items() if key not in dropped}
