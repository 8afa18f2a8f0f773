"""Polls the domain's state. Results are ordered by the start of the poll: an outdated one is dropped."""

import asyncio
import contextlib
from collections.abc import Callable

from kit.tasks import BackgroundTasks
from launcher.hypervisor.connection import DomainFacts, Hypervisor, HypervisorError

COALESCE_SECONDS = 0.05
"""Minimum interval between polls caused by events."""


class DomainPoller:
    """`on_facts` gets the result of each poll: None without a domain."""

    def __init__(
        self, hypervisor: Hypervisor, on_facts: Callable[[DomainFacts | None], None], tasks: BackgroundTasks
    ) -> None:
        self._hypervisor, self._on_facts, self._tasks = hypervisor, on_facts, tasks
        self._turn = asyncio.Lock()
        self._wanted = False
        self._begun = self._latest = 0
        """Number of started polls, and the number of the latest with an accepted result."""

    async def poll(self, domain: str) -> None:
        """Poll now. Raises HypervisorError."""
        self._begun += 1
        ticket = self._begun
        facts = await self._hypervisor.facts(domain)
        if ticket < self._latest:
            return  # a later poll has completed already
        self._latest = ticket
        self._on_facts(facts)

    def poll_soon(self, domain: str) -> None:
        """One poll for any number of events: a guest can cause them at any rate."""
        if not self._wanted:
            self._wanted = True
            self._tasks.start("poll", self._poll_coalesced(domain), domain=domain)

    async def _poll_coalesced(self, domain: str) -> None:
        async with self._turn:
            self._wanted = False
            with contextlib.suppress(HypervisorError):
                await self.poll(domain)
            await asyncio.sleep(COALESCE_SECONDS)
