"""Authentication of users through the API server's front proxy.

The aggregation layer forwards requests with its own client certificate and the user in headers. The certificate must be
signed by the request header CA **and** have an allowed common name; otherwise any client of the port could impersonate
system:admin. Both settings are in ConfigMap kube-system/extension-apiserver-authentication.

Sources: Kubernetes documentation, "Configure the aggregation layer"; k8s.io/apiserver,
pkg/authentication/request/headerrequest.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import web
from multidict import CIMultiDictProxy

from api.k8s.objects import ConfigMap
from gateway.http.status import unauthorized, unavailable
from gateway.pki.certificates import Certificates
from kit import log
from kit.cache import Store
from kit.kube import Kube

NAMESPACE = "kube-system"
NAME = "extension-apiserver-authentication"
LIMIT = 256
"""Maximum number of groups and of extra values of a user, to bound the SubjectAccessReview."""

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_log = log.logger(component="authentication")


@dataclass(frozen=True)
class User:
    """The user authenticated by the API server."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class FrontProxySettings:
    """Settings from the ConfigMap."""

    authorities: str = ""
    """CA certificates of the front proxy, PEM."""
    allowed_names: tuple[str, ...] = ()
    """Allowed common names of the front proxy; empty allows every certificate of the CA."""
    user_headers: tuple[str, ...] = ()
    group_headers: tuple[str, ...] = ()
    uid_headers: tuple[str, ...] = ()
    extra_prefixes: tuple[str, ...] = ()
    refusal: str = ""
    """Why requests cannot be authenticated; empty when they can."""


def settings_of(data: Mapping[str, str]) -> FrontProxySettings:
    """Parses the ConfigMap's data; sets `refusal` for missing or unsafe settings."""
    try:
        found = FrontProxySettings(
            authorities=data.get("requestheader-client-ca-file", ""),
            allowed_names=_names(data, "requestheader-allowed-names"),
            user_headers=_names(data, "requestheader-username-headers") or ("X-Remote-User",),
            group_headers=_names(data, "requestheader-group-headers") or ("X-Remote-Group",),
            uid_headers=_names(data, "requestheader-uid-headers") or ("X-Remote-Uid",),
            extra_prefixes=_names(data, "requestheader-extra-headers-prefix") or ("X-Remote-Extra-",),
        )
    except msgspec.DecodeError as error:
        return FrontProxySettings(refusal=f"ConfigMap {NAMESPACE}/{NAME} cannot be read: {error}")
    authorities = _certificates(found.authorities)
    if not authorities:
        words = "has no requestheader-client-ca-file: the API server's aggregation layer is not set up"
        return replace(found, refusal=f"ConfigMap {NAMESPACE}/{NAME} {words}")
    if not found.allowed_names and authorities & _certificates(data.get("client-ca-file", "")):
        # Without names every certificate of the CA would be accepted, and users' certificates are signed by it, too.
        words = (
            "has no requestheader-allowed-names, and the client CA is also the request header CA: any client "
            "certificate would be accepted as the front proxy's. Set --requestheader-allowed-names"
        )
        return replace(found, refusal=f"ConfigMap {NAMESPACE}/{NAME} {words}")
    return found


def _names(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    return tuple(msgspec.json.decode(data.get(key) or "[]", type=list[str]))


def _certificates(pem: str) -> set[bytes]:
    """The certificates in a bundle, as DER; invalid ones are skipped."""
    found = set()
    for block in _PEM.findall(pem):
        try:
            found.add(ssl.PEM_cert_to_DER_cert(block))
        except ValueError:
            continue
    return found


class FrontProxy:
    """Watches the ConfigMap and authenticates requests."""

    def __init__(self, kube: Kube, certificates: Certificates) -> None:
        self._certificates = certificates
        self._store = Store(kube, ConfigMap, fields={"metadata.name": NAME}, namespace=NAMESPACE)
        self._store.on_change(self._changed)
        self.settings = FrontProxySettings(refusal="the gateway has not read the front proxy settings yet: try again")
        self._trusted = ""

    def start(self) -> None:
        """Starts watching the ConfigMap."""
        self._store.start()

    async def stop(self) -> None:
        """Stops watching."""
        await self._store.stop()

    def trouble(self) -> str | None:
        """Why requests cannot be authenticated, for the readiness check; None when ready."""
        return self.settings.refusal or None

    def _changed(self, _old: ConfigMap | None, new: ConfigMap | None) -> None:
        if new is None:
            self.settings = FrontProxySettings(refusal=f"ConfigMap {NAMESPACE}/{NAME} not found")
            _log.error(
                "the aggregated API refuses all requests until the front proxy settings are valid",
                why=self.settings.refusal,
            )
            return
        found = settings_of(new.data or {})
        if found.authorities != self._trusted and not found.refusal:
            try:
                self._certificates.trust_clients(found.authorities.encode())
                self._trusted = found.authorities
            except (ssl.SSLError, ValueError) as error:
                found = replace(found, refusal=f"ConfigMap {NAMESPACE}/{NAME}: requestheader-client-ca-file: {error}")
        self.settings = found
        if found.refusal:
            _log.error(
                "the aggregated API refuses all requests until the front proxy settings are valid", why=found.refusal
            )
        else:
            _log.info("loaded the front proxy settings of the API server", names=found.allowed_names)

    def user(self, request: web.Request) -> User:
        """The user sent by the front proxy. Raises StatusError: 401, or 503 while the settings are unavailable."""
        if self.settings.refusal:
            raise unavailable(self.settings.refusal)
        certificate: dict[str, Any] | None = request.get_extra_info("peercert")
        if not certificate:
            raise unauthorized("no client certificate: connect through the Kubernetes API server")
        found = _common_names(certificate)
        allowed = self.settings.allowed_names
        # Several common names are ambiguous and refused.
        if allowed and (len(found) != 1 or found[0] not in allowed):
            raise unauthorized("the client certificate does not belong to the front proxy of the API server")
        return identity(request.headers, self.settings)


def _common_names(certificate: Mapping[str, Any]) -> list[str]:
    """The common names in a certificate from `ssl.SSLSocket.getpeercert`."""
    return [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]


def identity(headers: CIMultiDictProxy[str], settings: FrontProxySettings) -> User:
    """The user in the headers. Raises StatusError (401) without a user, or with more than LIMIT groups."""
    name = _first(headers, settings.user_headers)
    if not name:
        raise unauthorized("the front proxy sent no user name")
    groups = next((headers.getall(key) for key in settings.group_headers if key in headers), [])
    extra: dict[str, list[str]] = {}
    for key, value in headers.items():
        for prefix in settings.extra_prefixes:
            if key.lower().startswith(prefix.lower()):
                extra.setdefault(unquote(key[len(prefix) :].lower()), []).append(value)
    if len(groups) > LIMIT or sum(map(len, extra.values())) > LIMIT:
        raise unauthorized(f"the user has more than {LIMIT} groups or extra values")
    return User(
        name=name,
        groups=tuple(groups),
        uid=_first(headers, settings.uid_headers),
        extra=tuple(sorted((key, tuple(values)) for key, values in extra.items())),
    )


def _first(headers: CIMultiDictProxy[str], keys: tuple[str, ...]) -> str:
    return next((headers[key] for key in keys if headers.get(key)), "")
