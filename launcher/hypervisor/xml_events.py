"""Streams libvirt's XML through expat, with the place of each element in the document.

Not ElementTree: it costs every VM 0.7 MiB, expat 0.07 MiB. The XML is untrusted, because QEMU may have taken over
libvirt's daemon: its size is limited, and a document type, which could define entities, is refused.
"""

from collections.abc import Callable
from xml.parsers import expat

MAX_BYTES = 1 << 20
"""The domain of a VM with everything that its VMI can contain has less than a tenth of it."""

Attributes = dict[str, str]
OnStart = Callable[[list[str], Attributes, int], None]
"""Gets the tags from the root to the element, its attributes, and the offset of its start tag in bytes."""
OnEnd = Callable[[list[str], int], None]
"""Gets the tags from the root to the element, and the offset of its end tag in bytes."""


class InvalidXml(ValueError):
    """The text is not XML, too large, or has a document type."""


def walk(data: bytes, on_start: OnStart, on_end: OnEnd, limit: int = MAX_BYTES) -> None:
    """Call the functions for each element of a document, in its order. Raises InvalidXml."""
    if len(data) > limit:
        raise InvalidXml(f"libvirt's XML has {len(data)} bytes, the limit is {limit}")
    parser = expat.ParserCreate("utf-8")
    path: list[str] = []

    def start(tag: str, attributes: Attributes) -> None:
        path.append(tag)
        on_start(path, attributes, parser.CurrentByteIndex)

    def end(_tag: str) -> None:
        on_end(path, parser.CurrentByteIndex)
        path.pop()

    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InvalidXml(f"libvirt's XML cannot be parsed: {error}") from None
    finally:
        # They refer to the parser: without them it is freed at once, and not with the next garbage collection.
        parser.StartElementHandler = parser.EndElementHandler = None


def _refuse(*_: object) -> None:
    raise InvalidXml("libvirt's XML has a document type declaration")


def end_of_tag(data: bytes, offset: int) -> int:
    """The offset after an end tag, or after a start tag without attributes, neither of which contains another `>`.

    Source: XML 1.0, productions 40 and 42.
    """
    return data.index(b">", offset) + 1
