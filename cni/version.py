"""The supported CNI versions, and the response to VERSION. Source: CNI specification 1.1.0."""

import json

SUPPORTED = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST = SUPPORTED[-1]


def answer(stdin: bytes) -> bytes:
    """The response to VERSION: the request's version if supported, else the latest, and all supported versions."""
    chosen = LATEST
    try:
        given = json.loads(stdin)
    except ValueError:
        given = None
    if isinstance(given, dict) and given.get("cniVersion") in SUPPORTED:
        chosen = given["cniVersion"]
    return json.dumps({"cniVersion": chosen, "supportedVersions": SUPPORTED}).encode() + b"\n"


def at_least(version: str, wanted: str) -> bool:
    """Whether a supported version is `wanted` or newer."""
    return SUPPORTED.index(version) >= SUPPORTED.index(wanted)
