"""Rotation of certificate authorities: which exist, sign and are trusted, as a function of their ages.

A CA is trusted on creation, signs after one leaf lifetime (when the new bundle is distributed), and is removed one leaf
lifetime after its successor began to sign (when all of its leaves have expired). Peers therefore always trust each
other's certificates, and replicas need no coordination.
"""

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kit import tls

SERVING = "serving"
"""Signs the gateway's serving certificate, for the API server and handlers' signing requests."""
INTERNAL = "internal"
"""Signs the mTLS certificates of gateway and handlers."""
PURPOSES = (SERVING, INTERNAL)

_KEY = re.compile(r"(?P<purpose>serving|internal)\.(?P<created>[0-9]{1,12})\.crt")


class Lifetimes(NamedTuple):
    """Lifetimes in seconds. A CA's must be well over six leaf lifetimes."""

    authority: float = 365 * 86400.0
    leaf: float = 86400.0

    @property
    def renewal(self) -> float:
        """The age at which a leaf is renewed."""
        return self.leaf * 2 / 3


class Authority(NamedTuple):
    """A CA; `created` is a Unix timestamp in seconds."""

    created: int
    pair: tls.KeyPair


class RotationPlan(NamedTuple):
    """The CAs to keep, and whether to create one, for one purpose."""

    keep: list[Authority]
    make: bool


def plan(authorities: Sequence[Authority], now: float, lives: Lifetimes) -> RotationPlan:
    """Plans the rotation. `authorities` are sorted from the oldest to the newest."""
    keep = [
        authority
        for index, authority in enumerate(authorities)
        if now < authority.created + lives.authority
        and not any(now >= later.created + 2 * lives.leaf for later in authorities[index + 1 :])
    ]
    make = not keep or now >= keep[-1].created + lives.authority * 2 / 3
    return RotationPlan(keep, make)


def signer(authorities: Sequence[Authority], now: float, lives: Lifetimes) -> Authority:
    """The signing CA: the newest whose bundle has been distributed; else the oldest."""
    settled = [authority for authority in authorities if now >= authority.created + lives.leaf]
    return settled[-1] if settled else authorities[0]


def bundle(authorities: Sequence[Authority]) -> bytes:
    """The CA bundle, PEM."""
    return tls.bundle(authority.pair.certificate for authority in authorities)


def make(purpose: str, now: float, lives: Lifetimes) -> Authority:
    """Creates a CA."""
    created = int(now)
    return Authority(created, tls.authority(f"hyperlet {purpose} {created}", created, lives.authority))


def read(data: Mapping[str, str] | None, purpose: str) -> tuple[list[Authority], list[str]]:
    """The CAs in a Secret's data (base64), oldest first, and the errors of unreadable ones."""
    found, wrong = [], []
    for name, text in sorted((data or {}).items()):
        match = _KEY.fullmatch(name)
        if match is None or match["purpose"] != purpose:
            continue
        try:
            key = (data or {}).get(name.removesuffix("crt") + "key") or ""
            pair = tls.KeyPair(b64decode(text, validate=True), b64decode(key, validate=True))
            tls.check_pair(pair)
        except (binascii.Error, tls.TlsError) as error:
            wrong.append(f"{name}: {error}")
            continue
        found.append(Authority(int(match["created"]), pair))
    return sorted(found, key=lambda authority: authority.created), wrong


def change(data: Mapping[str, str] | None, purpose: str, keep: Sequence[Authority]) -> dict[str, str | None]:
    """The merge patch of a Secret's data that stores exactly `keep` for a purpose; empty without changes."""
    wanted: dict[str, str] = {}
    for authority in keep:
        name = f"{purpose}.{authority.created}"
        wanted[f"{name}.crt"] = b64encode(authority.pair.certificate).decode()
        wanted[f"{name}.key"] = b64encode(authority.pair.key).decode()
    have = {name: text for name, text in (data or {}).items() if name.startswith(f"{purpose}.")}
    changes: dict[str, str | None] = {name: text for name, text in wanted.items() if have.get(name) != text}
    return changes | {name: None for name in have if name not in wanted}
