"""Store of NetworkAttachmentDefinitions, whose CRD (of hyperlet or Multus) may be missing."""

import asyncio

from api import network_attachments
from api.errors import HyperletError, NotFound
from api.k8s.objects import K8sObject
from kit import log
from kit.cache import Store
from kit.kube import Kube

ABSENT_SECONDS = 10.0
"""Retry interval while the API server does not serve the kind."""

_log = log.logger(component="definitions")


class NetworkMetadata(K8sObject):
    """A NetworkAttachmentDefinition, of which only metadata is decoded. Its config is read by the handler or Multus."""

    RESOURCE = network_attachments.NetworkAttachmentDefinition.RESOURCE


class Definitions(Store[NetworkMetadata]):
    """The store. While the API server does not serve the kind, it is empty and counts as synced."""

    def __init__(self, kube: Kube) -> None:
        super().__init__(kube, NetworkMetadata)
        self.served = False
        """Whether the API server serves the kind."""

    async def run(self) -> None:
        """Waits until the kind is served, then lists and watches. Never returns."""
        while not await self._is_served():
            # The kind is not served, so the empty store is in sync.
            self._synced.set()
            await asyncio.sleep(ABSENT_SECONDS)
        self.served = True
        await super().run()

    async def _is_served(self) -> bool:
        try:
            await self._relist()
        except NotFound:
            if not self._synced.is_set():
                _log.info("Kind not served: secondary networks need its CRD", resource=self.plural)
            return False
        except HyperletError:
            # Store.run() gets the same error, and handles it.
            return True
        return True
