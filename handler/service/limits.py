"""Limits of concurrent calls and streams, per VM and per node."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from api.errors import HyperletError

STREAMS_OF_VM = 64
"""Consoles and VNC connections together."""
STREAMS_OF_NAMESPACE = 250
"""Limit per namespace."""
STREAMS = 1000
CALLS_OF_VM = 8


class Busy(HyperletError):
    """A limit is reached; the caller may retry later."""


class CallLimits:
    """Counts active streams and calls, by pod UID."""

    def __init__(
        self,
        streams_of_vm: int = STREAMS_OF_VM,
        streams: int = STREAMS,
        calls: int = CALLS_OF_VM,
        streams_of_namespace: int = STREAMS_OF_NAMESPACE,
    ) -> None:
        self._most = {"stream": streams_of_vm, "call": calls, "namespace": streams_of_namespace}
        self._streams = streams
        self._counts: Counter[tuple[str, str]] = Counter()
        self._all = 0

    @contextlib.contextmanager
    def stream(self, uid: str, namespace: str = "") -> Iterator[None]:
        """Count a console or VNC connection of the VM. Raises Busy."""
        if self._all >= self._streams:
            raise Busy(f"{self._streams} consoles and screens are open on this node, the maximum: try again later")
        self._all += 1
        try:
            with (
                self._one("stream", uid, "consoles and screens of this virtual machine are open"),
                self._one("namespace", namespace, "consoles and screens of this namespace are open on this node"),
            ):
                yield
        finally:
            self._all -= 1

    def call(self, uid: str) -> contextlib.AbstractContextManager[None]:
        """Count any other call to the VM. Raises Busy."""
        return self._one("call", uid, "requests to this virtual machine are pending")

    @contextlib.contextmanager
    def _one(self, kind: str, uid: str, words: str) -> Iterator[None]:
        if self._counts[kind, uid] >= self._most[kind]:
            raise Busy(f"{self._most[kind]} {words} already: try again later")
        self._counts[kind, uid] += 1
        try:
            yield
        finally:
            self._counts[kind, uid] -= 1
            if not self._counts[kind, uid]:
                del self._counts[kind, uid]
