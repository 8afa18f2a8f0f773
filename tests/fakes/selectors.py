"""Label and field selectors as the API server reads them."""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]

_COMMON = {"metadata.name", "metadata.namespace"}
_FIELDS = {
    "pods": {
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    },
    "nodes": {"spec.unschedulable"},
    "secrets": {"type"},
    "events": {
        *(f"involvedObject.{field}" for field in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion")),
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    },
}
"""Fields that can be selected besides `_COMMON`, by plural (k8s.io/kubernetes, pkg/registry/*/strategy.go)."""
_SET = re.compile(r"^(?P<key>[^\s!=,]+)\s+(?P<operator>in|notin)\s+\((?P<values>[^)]*)\)$")


class BadSelector(Exception):
    """A selector that the API server refuses."""


def labels_match(selector: str, labels: dict[str, str]) -> bool:
    """Whether labels match: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`. Raises BadSelector."""
    return all(_label(term.strip(), labels) for term in re.split(r",(?![^(]*\))", selector) if term.strip())


def _label(term: str, labels: dict[str, str]) -> bool:
    if found := _SET.match(term):
        values = {value.strip() for value in found["values"].split(",")}
        return (labels.get(found["key"]) in values) == (found["operator"] == "in")
    if "=" in term:
        key, equal, value = _compared(term)
        return (labels.get(key) == value) == equal
    if term.startswith("!"):
        return term[1:] not in labels
    if re.search(r"[\s()]", term):
        raise BadSelector(f"unable to parse requirement: {term}")
    return term in labels


def fields_match(selector: str, plural: str, obj: Json) -> bool:
    """Whether fields match: `a=b`, `a==b`, `a!=b`. Raises BadSelector for a field that cannot be selected."""
    return all(_field(term.strip(), plural, obj) for term in selector.split(",") if term.strip())


def _field(term: str, plural: str, obj: Json) -> bool:
    if "=" not in term:
        raise BadSelector(f"invalid selector: '{term}'; can't understand '{term}'")
    path, equal, value = _compared(term)
    if path not in _COMMON | _FIELDS.get(plural, set()):
        raise BadSelector(f"field label not supported: {path}")
    found: Any = obj
    for step in path.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    if path == "source":
        found = (found or {}).get("component")
    text = str(found).lower() if isinstance(found, bool) else str(found or "")
    return (text == value) == equal


def _compared(term: str) -> tuple[str, bool, str]:
    """Key, whether it must be equal, and the value."""
    key, operator, value = re.split(r"(!=|==|=)", term, maxsplit=1)
    return key.strip(), operator != "!=", value.strip()
