"""Structs that serialize to XML elements: each field declares its place.

A place is a path below the element: `@type` is an attribute, `source/@file` an attribute of a child, `name/text()` a
child's text, `acpi/` a child that is present if the value is true. A field without a place holds elements.

msgspec Structs rather than dataclasses: these classes are created at every VM start, and dataclasses take 34 ms more.
"""

import re
from typing import Any, ClassVar
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import msgspec

# Source: XML 1.0, production 2. ElementTree writes other characters too; libvirt's parser rejects them.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def at(place: str, default: Any = None) -> Any:
    """A field written to `place`; None omits it."""
    # msgspec's encoded field name; msgspec never encodes these structs.
    return msgspec.field(default=default, name=place)


class XmlStruct(msgspec.Struct, kw_only=True):
    """Base of all elements."""

    TAG: ClassVar[str]

    def element(self) -> Element:
        """The XML element. Raises ValueError for characters not allowed in XML."""
        root = ElementTree.Element(self.TAG)
        for name, place in zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True):
            value = getattr(self, name)
            if value is None:
                continue
            if place != name:
                _put(root, place, value)
            elif isinstance(value, XmlStruct):
                root.append(value.element())
            else:
                root.extend(node.element() for node in value)
        return root

    def text(self) -> str:
        """The XML for libvirt, indented."""
        root = self.element()
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode") + "\n"


def _put(root: Element, place: str, value: object) -> None:
    *steps, last = place.split("/")
    if last == "" and not value:
        return
    element = root
    for step in steps:
        found = element.find(step)
        element = ElementTree.SubElement(element, step) if found is None else found
    if last.startswith("@"):
        element.set(last[1:], _text(value))
    elif last == "text()":
        element.text = _text(value)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    if found := _NOT_XML.search(text):
        raise ValueError(f"{text[:80]!r} contains the character {found.group()!r}, which is not allowed in XML")
    return text
