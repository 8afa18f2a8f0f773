"""Leader election by a Lease (coordination.k8s.io/v1).

A leader that cannot renew the Lease stops at RENEW_DEADLINE, before another replica may take over: the others wait for
LEASE_SECONDS, on their own clock, since the last observed change. A Lease is no fence: the leader must also rely on the
API server's conflict checks (UID preconditions, derived pod names).
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

from api.errors import AlreadyExists, Conflict, HyperletError, NotFound
from api.k8s.objects import Lease
from kit import log
from kit.kube import Kube
from kit.tasks import running

LEASE_SECONDS = 15
RENEW_DEADLINE = 10.0
RENEW_SECONDS = 4.0
"""Renewal interval: 15 writes a minute."""

_log = log.logger(component="leader")


class LeadershipLost(Exception):
    """The Lease could not be renewed: another replica may act now."""


class Leader:
    """Acquires and renews the Lease `namespace/name` as `identity` (unique to the process)."""

    def __init__(self, kube: Kube, namespace: str, name: str, identity: str) -> None:
        self._kube = kube
        self._where = (namespace, name)
        self._identity = identity
        self._lease: Lease | None = None
        self._seen = ("", 0.0)
        self.leading = False
        self._failures = 0

    async def lead(self, work: Coroutine[Any, Any, Any]) -> None:
        """Waits for the Lease, then runs `work` while renewing it. Cancels `work` and raises LeadershipLost if it is
        lost."""
        try:
            while not await self._try():  # noqa: ASYNC110
                await asyncio.sleep(2 * random.uniform(0.8, 1.2))
        except BaseException:
            work.close()
            raise
        self.leading = True
        _log.info("Leading", lease="/".join(self._where), identity=self._identity)
        lost = False
        try:
            async with running(work, self._renew()) as (task, renewing):
                try:
                    await asyncio.wait({task, renewing}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self.leading, lost = False, renewing.done()
        finally:
            if not lost:
                await self._release()
        if not task.cancelled():
            task.result()
        if lost:
            renewing.result()
            raise LeadershipLost(f"The lease {'/'.join(self._where)} could not be renewed for {RENEW_DEADLINE:.0f} s")

    async def _renew(self) -> None:
        """Returns when the Lease is lost."""
        renewed = time.monotonic()
        while time.monotonic() - renewed < RENEW_DEADLINE:
            await asyncio.sleep(RENEW_SECONDS if time.monotonic() - renewed < RENEW_SECONDS else 1)
            began = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.1, RENEW_DEADLINE - (began - renewed))):
                    if await self._try():
                        renewed = began
                    elif self._lease and self._lease.spec.holderIdentity not in (None, "", self._identity):
                        return

    async def _try(self) -> bool:
        """Acquires or renews the Lease; False if another replica holds it or the API server is unavailable."""
        namespace, name = self._where
        try:
            if self._lease is None or not self.leading:
                self._lease = await self._kube.get(Lease, namespace, name)
            if not self._takeable(self._lease):
                return False
            self._lease = await self._kube.patch(Lease, namespace, name, self._claim(self._lease))
        except NotFound:
            return await self._create()
        except Conflict:
            # Another replica was faster, or the response of an own write was lost: read the Lease again.
            self._lease = None
            return False
        except HyperletError as error:
            self._failures += 1
            if self._failures & (self._failures - 1) == 0:
                _log.warning("Cannot renew the lease", why=error.message, lease=name, failures=self._failures)
            return False
        self._failures = 0
        return True

    def _takeable(self, lease: Lease) -> bool:
        spec, now = lease.spec, time.monotonic()
        if spec.holderIdentity in (None, "", self._identity):
            return True
        mark = f"{spec.holderIdentity} {lease.metadata.resourceVersion}"
        if mark != self._seen[0]:
            self._seen = (mark, now)
        return now - self._seen[1] > LEASE_SECONDS

    def _claim(self, lease: Lease) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = {"renewTime": now}
        if lease.spec.holderIdentity != self._identity:
            spec |= {
                "holderIdentity": self._identity,
                "acquireTime": now,
                "leaseDurationSeconds": LEASE_SECONDS,
                "leaseTransitions": (lease.spec.leaseTransitions or 0) + 1,
            }
        return {"metadata": {"resourceVersion": lease.metadata.resourceVersion}, "spec": spec}

    async def _create(self) -> bool:
        namespace, name = self._where
        body = {"metadata": {"name": name}, "spec": self._claim(Lease())["spec"]}
        try:
            self._lease = await self._kube.create(Lease, body, namespace)
        except (AlreadyExists, Conflict):
            return False
        except HyperletError as error:
            _log.warning("Cannot create the lease", why=error.message, lease=name)
            return False
        return True

    async def _release(self) -> None:
        """Releases the Lease on a clean exit, so that the next replica need not wait."""
        namespace, name = self._where
        with contextlib.suppress(HyperletError, TimeoutError):
            async with asyncio.timeout(2):
                lease = self._lease
                if lease is None:
                    lease = await self._kube.get(Lease, namespace, name)
                try:
                    await self._give_back(lease)
                except Conflict:
                    # A renewal that was in flight when the work ended has succeeded.
                    await self._give_back(await self._kube.get(Lease, namespace, name))

    async def _give_back(self, lease: Lease) -> None:
        if lease.spec.holderIdentity == self._identity:
            namespace, name = self._where
            patch = {"metadata": {"resourceVersion": lease.metadata.resourceVersion}, "spec": {"holderIdentity": ""}}
            await self._kube.patch(Lease, namespace, name, patch)
