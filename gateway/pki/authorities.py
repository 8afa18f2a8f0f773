"""Which authorities there are, which of them signs, and which are believed: a function of their ages alone.

An authority is believed as soon as it is there, signs one leaf's life later (by then everybody has been given the new
bundle), and is taken away one leaf's life after its successor began to sign (by then none of its leaves lives). So
nobody ever meets a certificate that it does not believe, and no replica has to tell another what it is doing.
"""

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kit import tls

SERVING = "serving"
"""Signs what the API server and the handlers' signing requests meet: the gateway's HTTPS certificate."""
INTERNAL = "internal"
"""Signs the gateway's and the handlers' certificates for each other."""
PURPOSES = (SERVING, INTERNAL)

_KEY = re.compile(r"(?P<purpose>serving|internal)\.(?P<created>[0-9]{1,12})\.crt")


class Lifetimes(NamedTuple):
    """Seconds that certificates live. An authority's must be well over six leaves'."""

    authority: float = 365 * 86400.0
    leaf: float = 86400.0

    @property
    def renewal(self) -> float:
        """The age at which a leaf is made anew."""
        return self.leaf * 2 / 3


class Authority(NamedTuple):
    """One authority; `created` is in seconds since 1970."""

    created: int
    pair: tls.KeyPair


class RotationPlan(NamedTuple):
    """What to do about the authorities of one purpose."""

    keep: list[Authority]
    make: bool


def plan(authorities: Sequence[Authority], now: float, lives: Lifetimes) -> RotationPlan:
    """Which authorities stay, and whether a new one is due. `authorities` go from the oldest to the newest."""
    keep = [
        authority
        for index, authority in enumerate(authorities)
        if now < authority.created + lives.authority
        and not any(now >= later.created + 2 * lives.leaf for later in authorities[index + 1 :])
    ]
    make = not keep or now >= keep[-1].created + lives.authority * 2 / 3
    return RotationPlan(keep, make)


def signer(authorities: Sequence[Authority], now: float, lives: Lifetimes) -> Authority:
    """Who signs: the newest that everybody has had the time to hear of; else the oldest there is."""
    settled = [authority for authority in authorities if now >= authority.created + lives.leaf]
    return settled[-1] if settled else authorities[0]


def bundle(authorities: Sequence[Authority]) -> bytes:
    """The certificates of all of them, PEM."""
    return tls.bundle(authority.pair.certificate for authority in authorities)


def make(purpose: str, now: float, lives: Lifetimes) -> Authority:
    """A new authority."""
    created = int(now)
    return Authority(created, tls.authority(f"hyperlet {purpose} {created}", created, lives.authority))


def read(data: Mapping[str, str] | None, purpose: str) -> tuple[list[Authority], list[str]]:
    """The authorities in a Secret's data (base64), oldest first, and what is wrong with others that stand there."""
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
    """The merge patch of a Secret's data that leaves exactly `keep` of a purpose there; empty when nothing differs."""
    wanted: dict[str, str] = {}
    for authority in keep:
        name = f"{purpose}.{authority.created}"
        wanted[f"{name}.crt"] = b64encode(authority.pair.certificate).decode()
        wanted[f"{name}.key"] = b64encode(authority.pair.key).decode()
    have = {name: text for name, text in (data or {}).items() if name.startswith(f"{purpose}.")}
    changes: dict[str, str | None] = {name: text for name, text in wanted.items() if have.get(name) != text}
    return changes | {name: None for name in have if name not in wanted}
