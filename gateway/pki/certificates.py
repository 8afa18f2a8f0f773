"""This replica's leaf certificates, in memory only and renewed without restart, and the trusted CA bundles."""

import ssl
import time
from collections.abc import Callable, Mapping, Sequence

from api import names
from gateway.pki import authorities
from gateway.pki.authorities import INTERNAL, PURPOSES, SERVING, Authority, Lifetimes
from kit import tls
from kit.tls import Names, TlsIdentity


class Certificates:
    """The gateway's certificates. Before the first `update` TLS handshakes fail."""

    def __init__(
        self, namespace: str = names.NAMESPACE, lives: Lifetimes | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.lives = lives or Lifetimes()
        self.server = tls.switching_context(lambda: self._current)
        """The server's TLS context; remains valid across renewals."""
        self.client: TlsIdentity | None = None
        """The client identity for handlers. Replaced on every renewal; None before the first `update`."""
        self._clock = clock
        self._names = _service_names(namespace)
        self._authorities: dict[str, list[Authority]] = {}
        self._serving: tls.KeyPair | None = None
        self._current: ssl.SSLContext | None = None
        self._clients: bytes | None = None
        self._made: dict[str, tuple[float, Authority]] = {}

    @property
    def ready(self) -> bool:
        """Whether certificates have been issued."""
        return self._current is not None

    def trust_clients(self, authorities: bytes | None) -> None:
        """Sets the CAs for client certificates (the front proxy's, PEM).

        Client certificates are optional; the endpoints decide what is allowed without. The subject is in
        `request.transport.get_extra_info("peercert")`. Raises ssl.SSLError if `authorities` is not PEM.
        """
        if self._serving is not None:
            self._current = tls.server_context(self._serving, authorities)
        elif authorities:
            tls.client_context(authorities)
        self._clients = authorities

    def bundle(self, purpose: str) -> bytes:
        """The CA bundle of a purpose, PEM."""
        return authorities.bundle(self._authorities[purpose])

    def update(self, found: Mapping[str, Sequence[Authority]]) -> bool:
        """Sets the CAs and renews leaves that are due. Returns whether a leaf was issued."""
        now = self._clock()
        changed = {purpose for purpose in PURPOSES if list(found[purpose]) != self._authorities.get(purpose)}
        self._authorities = {purpose: list(found[purpose]) for purpose in PURPOSES}
        due = {purpose for purpose in PURPOSES if self._is_due(purpose, now)}
        if SERVING in due:
            self._serving = self._leaf(SERVING, tls.new_key(), Names(dns=self._names), now)
            self._current = tls.server_context(self._serving, self._clients)
        if INTERNAL in due:
            pair = self._leaf(INTERNAL, tls.new_key(), Names(uris=(names.URI_GATEWAY,)), now)
            self.client = TlsIdentity(pair.certificate, pair.key, self.bundle(INTERNAL))
        elif INTERNAL in changed and self.client is not None:
            self.client = self.client._replace(roots=self.bundle(INTERNAL))
        return bool(due)

    def due(self) -> float:
        """Seconds until the next renewal."""
        now = self._clock()
        ages = [made + self.lives.renewal - now for made, _ in self._made.values()]
        return max(0.0, min(ages, default=0.0))

    def sign_node(self, public: bytes, node: str) -> TlsIdentity:
        """Signs a handler's certificate; returns it with the CA bundle. The private key stays with the handler.

        Raises TlsError for a key that is not on P-256.
        """
        now = self._clock()
        signer = authorities.signer(self._authorities[INTERNAL], now, self.lives)
        wanted = Names(dns=(names.node_dns_name(node),), uris=(names.node_uri(node),))
        leaf = tls.issue(signer.pair, public, wanted, client=False, now=now, seconds=self.lives.leaf)
        return TlsIdentity(leaf, b"", self.bundle(INTERNAL))

    def _is_due(self, purpose: str, now: float) -> bool:
        made, by = self._made.get(purpose, (0.0, None))
        return by not in self._authorities[purpose] or not made <= now < made + self.lives.renewal

    def _leaf(self, purpose: str, key: bytes, wanted: Names, now: float) -> tls.KeyPair:
        signer = authorities.signer(self._authorities[purpose], now, self.lives)
        client = purpose == INTERNAL
        leaf = tls.issue(signer.pair, tls.public_key(key), wanted, client=client, now=now, seconds=self.lives.leaf)
        self._made[purpose] = (now, signer)
        return tls.KeyPair(leaf, key)


def _service_names(namespace: str) -> tuple[str, ...]:
    """DNS names of the gateway's Service, used by the API server (`.svc`), handlers and users."""
    service = f"{names.GATEWAY_SERVICE}.{namespace}"
    return (f"{service}.svc", service, f"{service}.svc.cluster.local")
