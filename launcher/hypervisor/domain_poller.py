"""Looks at the domain, in order: one that took long never counts over one that was begun after it."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from launcher.hypervisor.connection import DomainFacts, Hypervisor, HypervisorError

COALESCE_SECONDS = 0.05
"""Between two looks that events have caused."""


class DomainPoller:
    """`on_facts` gets what each look that counts has found: None if there is no domain. `spawn` runs a coroutine."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        on_facts: Callable[[DomainFacts | None], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._hypervisor, self._on_facts, self._spawn = hypervisor, on_facts, spawn
        self._turn = asyncio.Lock()
        self._wanted = False
        self._begun = self._latest = 0
        """Looks that were begun, and the latest of them that was taken for true."""

    async def poll(self, domain: str) -> None:
        """Looks now. Raises HypervisorError."""
        self._begun += 1
        ticket = self._begun
        facts = await self._hypervisor.facts(domain)
        if ticket < self._latest:
            return  # a look that began later has been quicker
        self._latest = ticket
        self._on_facts(facts)

    def poll_soon(self, domain: str) -> None:
        """One look for however many events: a guest can cause as many as it likes."""
        if not self._wanted:
            self._wanted = True
            self._spawn(self._poll_coalesced(domain))

    async def _poll_coalesced(self, domain: str) -> None:
        async with self._turn:
            self._wanted = False
            with contextlib.suppress(HypervisorError):
                await self.poll(domain)
            await asyncio.sleep(COALESCE_SECONDS)
