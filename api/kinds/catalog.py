"""All kinds that hyperlet serves."""

from collections.abc import Iterable, Iterator

from api.kinds import cni, kubevirt
from api.kinds.kind import Kind


class Catalog:
    """Kinds by group and name. Iterating yields them in the order of their declaration."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._kinds = {(kind.group, kind.name): kind for kind in kinds}

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds.values())

    def get(self, group: str, name: str) -> Kind | None:
        """The kind, or None."""
        return self._kinds.get((group, name))

    def admitted(self) -> list[Kind]:
        """The kinds that admission validates."""
        return [kind for kind in self if kind.validate is not None]

    def watched(self) -> list[Kind]:
        """The kinds that the controller has a store of."""
        return [kind for kind in self if kind.controller != "ignores"]

    def finalizers(self) -> frozenset[str]:
        """The controller's finalizers on objects of all kinds."""
        return frozenset(kind.finalizer for kind in self if kind.finalizer)


CATALOG = Catalog((*kubevirt.KINDS, *cni.KINDS))
