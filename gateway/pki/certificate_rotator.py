"""The certificate rotator: rotates CAs in their Secret, renews this replica's leaves, and injects CA bundles.

All replicas run it without leader election: the first write wins, the others get a conflict (resourceVersion) and read
the result.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from api import names
from api.errors import ApiUnavailable, Conflict, HyperletError
from api.k8s.objects import ConfigMap, Secret
from gateway.pki import authorities, ca_injection
from gateway.pki.authorities import PURPOSES, SERVING, Authority
from gateway.pki.certificates import Certificates
from kit import log
from kit.cache import Store
from kit.kube import Kube

LOOK_SECONDS = 60.0
"""Maximum interval between two rounds without changes."""
RETRY_SECONDS = 2.0

_log = log.logger(component="certificates")


class CertificateRotator:
    """Runs until cancelled; the first round fills `certificates`."""

    def __init__(
        self, kube: Kube, namespace: str, certificates: Certificates, clock: Callable[[], float] = time.time
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._certificates = certificates
        self._clock = clock
        self._changed = asyncio.Event()
        self._told: frozenset[str] = frozenset()
        one = {"metadata.name": names.AUTHORITIES}
        self._secrets: Store[Secret] = Store(kube, Secret, fields=one, namespace=namespace)
        self._maps: Store[ConfigMap] = Store(kube, ConfigMap, fields=one, namespace=namespace)
        self._targets: list[tuple[type[Any], str, Store[Any]]] = [
            (kind, name, Store(kube, kind, fields={"metadata.name": name})) for kind, name in ca_injection.TARGETS
        ]
        self.trouble: str | None = "no certificates have been issued yet"
        """The error of the last round; None if it succeeded."""
        self.is_healthy = False
        """Whether any round has updated all existing objects: from then on the API server can call the gateway."""

    @property
    def stores(self) -> list[Store[Any]]:
        """All watched stores."""
        return [self._secrets, self._maps, *(store for _, _, store in self._targets)]

    async def run(self) -> None:
        """Watches the objects and reconciles them."""
        for store in self.stores:
            store.on_change(lambda _old, _new: self._changed.set())
            store.start()
        try:
            await asyncio.gather(*(store.synced() for store in self.stores))
            while True:
                await self._round()
        finally:
            for store in self.stores:
                await store.stop()

    async def _round(self) -> None:
        self._changed.clear()
        try:
            await self.look()
            self.trouble = None
            pause = min(LOOK_SECONDS, max(self._certificates.due(), 0.05))
        except Conflict:
            pause = RETRY_SECONDS  # another replica was first: wait for its write in the watch
        except HyperletError as error:
            if self.trouble != error.message:
                _log.warning("certificate rotation incomplete; retrying", why=error.message)
            self.trouble, pause = error.message, RETRY_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._changed.wait()

    async def look(self) -> None:
        """One round: CAs, leaves, bundles. Raises HyperletError if incomplete."""
        found = await self._authorities()
        if self._certificates.update(found):
            _log.info("issued new leaf certificates", seconds=self._certificates.lives.leaf)
        bundle = self._certificates.bundle(SERVING)
        await self._publish(bundle)
        problems = [problem for target in self._targets if (problem := await self._inject(*target, bundle))]
        if problems:
            raise ApiUnavailable("; ".join(problems))
        self.is_healthy = True
        if missing := [
            f"{kind.__name__} {name}" for kind, name, store in self._targets if store.get(None, name) is None
        ]:
            # It may have been deleted on purpose: remain healthy for the others.
            raise ApiUnavailable(f"not found: {', '.join(missing)}: apply the manifests")

    async def _authorities(self) -> dict[str, list[Authority]]:
        """The CAs of every purpose; creates those that are due and updates the Secret."""
        secret = self._secrets.get(self._namespace, names.AUTHORITIES)
        if secret is None:
            raise ApiUnavailable(f"Secret {self._namespace}/{names.AUTHORITIES} not found: apply the manifests")
        now, lives = self._clock(), self._certificates.lives
        found: dict[str, list[Authority]] = {}
        change: dict[str, str | None] = {}
        for purpose in PURPOSES:
            have, wrong = authorities.read(secret.data, purpose)
            self._log_failure(wrong)
            plan = authorities.plan(have, now, lives)
            found[purpose] = [*plan.keep, *([authorities.make(purpose, now, lives)] if plan.make else [])]
            change |= authorities.change(secret.data, purpose, found[purpose])
        if change:
            body = {"metadata": {"resourceVersion": secret.metadata.resourceVersion}, "data": change}
            self._secrets.learn(await self._kube.patch(Secret, self._namespace, names.AUTHORITIES, body))
            _log.info("rotated certificate authorities", keys=sorted(change))
        return found

    def _log_failure(self, wrong: list[str]) -> None:
        if fresh := frozenset(wrong) - self._told:
            _log.warning("replacing unreadable certificate authorities", secret=names.AUTHORITIES, why=sorted(fresh))
            self._told |= fresh

    async def _publish(self, bundle: bytes) -> None:
        """Publishes the CA bundle that handlers use for signing requests."""
        config = self._maps.get(self._namespace, names.AUTHORITIES)
        if config is None:
            raise ApiUnavailable(f"ConfigMap {self._namespace}/{names.AUTHORITIES} not found: apply the manifests")
        text = bundle.decode("ascii")
        if (config.data or {}).get(names.SERVING_BUNDLE) != text:
            body = {"data": {names.SERVING_BUNDLE: text}}
            self._maps.learn(await self._kube.patch(ConfigMap, self._namespace, names.AUTHORITIES, body))

    async def _inject(self, kind: type[Any], name: str, store: Store[Any], bundle: bytes) -> str | None:
        """Injects the CA bundle into an object; returns the error, if any."""
        target = store.get(None, name)
        patch = ca_injection.patch(target, bundle) if target is not None else []
        if not patch:
            return None
        try:
            store.learn(await self._kube.patch(kind, None, name, patch, patch_kind="json"))
        except HyperletError as error:
            return error.message
        _log.info("injected the CA bundle", kind=kind.__name__, name=name)
        return None
