"""Who asks: the user that the API server's front proxy vouches for.

The aggregation layer sends requests on with its own client certificate and the user in headers. Both must be right: a
certificate of the request header authority **and** a common name that is allowed; else anybody who reaches the port
could call himself system:admin. What is right stands in ConfigMap kube-system/extension-apiserver-authentication.
Source: Kubernetes documentation, "Configure the aggregation layer", and k8s.io/apiserver/pkg/authentication/request/headerrequest.
"""

import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

import msgspec
from aiohttp import web
from multidict import CIMultiDictProxy

from api.k8s import ConfigMap
from gateway.certificates import Certificates
from gateway.subresources.status import unauthorized, unavailable
from kit import log
from kit.cache import Store
from kit.kube import Kube

NAMESPACE = "kube-system"
NAME = "extension-apiserver-authentication"
LIMIT = 256
"""Groups and extra values taken of one user: more is an attack, and a review must stay small."""

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_log = log.logger(component="authentication")


@dataclass(frozen=True)
class User:
    """Whom the API server authenticated."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Settings:
    """What the ConfigMap says. `refusal` is why nobody is believed, if so."""

    authorities: str = ""
    allowed_names: tuple[str, ...] = ()
    user_headers: tuple[str, ...] = ()
    group_headers: tuple[str, ...] = ()
    uid_headers: tuple[str, ...] = ()
    extra_prefixes: tuple[str, ...] = ()
    refusal: str = field(default="", compare=False)


def settings_of(data: Mapping[str, str]) -> Settings:
    """The settings in the ConfigMap's data; a `refusal` where they cannot be used safely."""
    authorities = data.get("requestheader-client-ca-file", "")
    refusal = ""
    try:
        allowed = _names(data, "requestheader-allowed-names")
        found = Settings(
            authorities=authorities,
            allowed_names=allowed,
            user_headers=_names(data, "requestheader-username-headers") or ("X-Remote-User",),
            group_headers=_names(data, "requestheader-group-headers") or ("X-Remote-Group",),
            uid_headers=_names(data, "requestheader-uid-headers") or ("X-Remote-Uid",),
            extra_prefixes=_names(data, "requestheader-extra-headers-prefix") or ("X-Remote-Extra-",),
        )
    except msgspec.DecodeError as error:
        return Settings(refusal=f"ConfigMap {NAMESPACE}/{NAME} cannot be read: {error}")
    if not _certificates(authorities):
        refusal = (
            f"ConfigMap {NAMESPACE}/{NAME} has no requestheader-client-ca-file: the aggregation layer is not set up"
        )
    elif not allowed and _certificates(authorities) & _certificates(data.get("client-ca-file", "")):
        # Without names every certificate of the authority is the front proxy's, and here users have such certificates.
        refusal = (
            f"ConfigMap {NAMESPACE}/{NAME} has no requestheader-allowed-names, and its requestheader-client-ca-file is "
            "also a client-ca-file, so that any user's certificate would pass for the API server's"
        )
    return msgspec.structs.replace(found, refusal=refusal) if False else _with(found, refusal)


def _with(settings: Settings, refusal: str) -> Settings:
    return Settings(**{**settings.__dict__, "refusal": refusal})


def _names(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    return tuple(msgspec.json.decode(data.get(key) or "[]", type=list[str]))


def _certificates(pem: str) -> set[bytes]:
    found = set()
    for block in _PEM.findall(pem):
        try:
            found.add(ssl.PEM_cert_to_DER_cert(block))
        except ValueError:
            continue
    return found
