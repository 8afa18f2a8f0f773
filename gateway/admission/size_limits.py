"""Size limits of an object, checked first, because later checks take time proportional to the size.

The largest VMs have a few thousand values. The limits are far above that, and keep the CPU time of a review below
50 ms for any input (`bench admission`).
"""

from collections.abc import Iterator
from typing import Any

from api import names
from api.errors import Fault
from api.schema.shape import SHOWN
from api.validation.validate import MAX_ANNOTATION_BYTES
from gateway.admission.review import AdmissionRequest

ENTRIES = 512
"""Maximum number of entries of a list or object."""
VALUES = 10_000
"""Maximum number of values in a spec."""
TEXT = 448 << 10
"""Maximum number of characters in a spec: a template's annotations and cloud-init data at their limits."""
_NESTED = (dict, list)
_METADATA = ("labels", "annotations", "finalizers", "ownerReferences")


def faults(request: AdmissionRequest) -> list[Fault]:
    """A Fault for an exceeded limit; no other check may run then."""
    if request.trouble:
        return [_too_much("", request.trouble)]
    document = request.object or {}
    return [*_metadata(document.get("metadata")), *_spec(document.get("spec"))][:1]


def _metadata(metadata: Any) -> Iterator[Fault]:
    if not isinstance(metadata, dict):
        return
    for field in _METADATA:
        value = metadata.get(field)
        if isinstance(value, dict | list) and len(value) > ENTRIES:
            yield _too_much(f"metadata.{field}", f"has {len(value)} entries, exceeding the maximum of {ENTRIES}")
    annotations = metadata.get("annotations")
    if isinstance(annotations, dict):
        # The API server has the same limit, but checks it after the webhooks.
        size = sum(len(key) + len(value) for key, value in annotations.items() if isinstance(value, str))
        if size > MAX_ANNOTATION_BYTES:
            words = f"{size} characters in total, exceeding the maximum of {MAX_ANNOTATION_BYTES}"
            yield _too_much(
                "metadata.annotations", f"{words}: use kubectl apply --server-side, which stores no annotation"
            )


def _spec(spec: Any) -> Iterator[Fault]:
    if not _fits(spec):
        yield from _excess(spec)


def _fits(spec: Any) -> bool:
    """Whether all limits are met: a fast check without paths."""
    values, text = 0, 0
    waiting: list[Any] = [spec] if spec.__class__ in _NESTED else []
    for node in waiting:
        count = len(node)
        values += count
        if count > ENTRIES or values > VALUES:
            return False
        children = node
        if node.__class__ is dict:
            text += sum(map(len, node))
            children = node.values()
        for child in children:
            kind = child.__class__
            if kind is str:
                text += len(child)
            elif kind is dict or kind is list:
                waiting.append(child)
    return text <= TEXT


def _excess(spec: Any) -> Iterator[Fault]:
    values, text, waiting = 0, 0, [("spec", spec)]
    while waiting:
        path, node = waiting.pop()
        if node.__class__ not in _NESTED:
            continue
        if len(node) > ENTRIES:
            yield _too_much(path, f"has {len(node)} entries, exceeding the maximum of {ENTRIES}")
            return
        values += len(node)
        if node.__class__ is dict:
            text += sum(map(len, node))
            children = [(f"{path}.{key[:SHOWN]}", child) for key, child in node.items()]
        else:
            children = [(f"{path}[{index}]", child) for index, child in enumerate(node)]
        text += sum(len(child) for _, child in children if child.__class__ is str)
        if values > VALUES or text > TEXT:
            words = f"{VALUES} values" if values > VALUES else f"{TEXT} characters"
            yield _too_much("spec", f"must have at most {words} in total")
            return
        waiting += [(here, child) for here, child in children if child.__class__ in _NESTED]


def _too_much(path: str, words: str) -> Fault:
    return Fault(path, names.FAULT_INVALID, f"{words}; the rest of the object was not validated")
