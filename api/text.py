"""Text of untrusted origin, such as launchers, guests, registries and users."""

import re

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def printable(text: str, limit: int | None = None, mark: str = " ") -> str:
    """The first `limit` characters, for messages: line breaks, terminal sequences and other unprintable characters
    become `mark`."""
    return "".join(character if character.isprintable() else mark for character in text[:limit])


def is_mac(text: str) -> bool:
    """Whether `text` is an Ethernet address in lower case with colons."""
    return bool(_MAC.fullmatch(text))
