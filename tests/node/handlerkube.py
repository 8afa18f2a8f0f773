"""A handler's client of the fake API server, and what a test sees and changes there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

from api.k8s.resource import resource_of
from api.kubevirt.vmi import VirtualMachineInstance
from kit.kube import Kube
from tests.fakes.apiserver import FakeApi, Json


class HandlerKube(Kube):
    """The client, with helpers of the test. `events`: type, reason and message of each Event, when it is recorded."""

    api: FakeApi
    events: list[tuple[str, str, str]]

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator[HandlerKube]:
        """A client of a new API server."""
        async with FakeApi() as api:
            made = cls.connect("handler", api.kubeconfig(folder))
            assert isinstance(made, HandlerKube)
            made.api, made.events = api, []
            async with made:
                yield made

    async def event(self, obj: Any, reason: str, message: str, type: Literal["Normal", "Warning"] = "Normal") -> None:
        self.events.append((type, reason, message))
        await super().event(obj, reason, message, type)

    @property
    def patches(self) -> list[Json]:
        """The patches of VMIs that the server has executed."""
        wanted = ("patch", VirtualMachineInstance.RESOURCE.plural)
        return [write.body for write in self.api.writes if (write.verb, write.resource) == wanted]

    @property
    def away(self) -> bool:
        """Whether the server is unavailable."""
        return self.api.away

    @away.setter
    def away(self, away: bool) -> None:
        if away:
            self.api.leave()
        else:
            self.api.away = False

    def put(self, kind: type, document: Json) -> None:
        """Creates or replaces an object."""
        self.api.put(resource_of(kind).plural, document)

    def remove(self, kind: type, namespace: str, name: str) -> None:
        """Deletes an object."""
        self.api.remove(resource_of(kind).plural, name, namespace)

    def document(self, kind: type, namespace: str, name: str) -> Json:
        """What is stored."""
        return self.api.objects[resource_of(kind).plural, namespace, name]

    def status(self, name: str = "vm") -> Json:
        """The status of a VMI."""
        found: Json = self.document(VirtualMachineInstance, "test", name)["status"]
        return found

    def condition(self, type: str, name: str = "vm") -> Json:
        """A condition of a VMI; empty if it has none of that type."""
        return next((item for item in self.status(name).get("conditions", []) if item["type"] == type), {})
