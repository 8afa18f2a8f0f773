"""The NetworkAttachmentDefinitions of the cluster, if it has such a kind: its CRD is ours or Multus'."""

import asyncio

from api.errors import HyperletError, NotFound
from api.k8s.objects import K8sObject
from kit import log
from kit.cache import Store
from kit.kube import Kube

ABSENT_SECONDS = 10.0
"""How often a server that does not know the kind is asked again."""

_log = log.logger(component="definitions")


class NetworkAttachmentDefinition(K8sObject):
    """Only what the controller reads of one: what its network is, is for the handler or Multus to find out."""


class Definitions(Store[NetworkAttachmentDefinition]):
    """All of them. While the server does not know the kind, there are none, and nobody waits for a list of them."""

    def __init__(self, kube: Kube) -> None:
        super().__init__(kube, NetworkAttachmentDefinition)
        self.served = False
        """Whether the server knows the kind."""

    async def run(self) -> None:
        """Lists and watches for ever, as soon as there is something to list."""
        while not await self._is_served():
            # There are none: whoever waits for the first list has it.
            self._synced.set()
            await asyncio.sleep(ABSENT_SECONDS)
        self.served = True
        await super().run()

    async def _is_served(self) -> bool:
        try:
            await self._relist()
        except NotFound:
            if not self._synced.is_set():
                _log.info("The API server does not know the kind: VMs join the pod network only", resource=self.plural)
            return False
        except HyperletError:
            # run() meets it too, and knows how to go on.
            return True
        return True
