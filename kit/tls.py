"""Keys and certificates: made, read and loaded. The only module that knows `cryptography`."""

from typing import NamedTuple


class Identity(NamedTuple):
    """A private key with its certificate, and the authorities that its owner trusts; all of it PEM."""

    certificate: bytes
    key: bytes
    roots: bytes
