"""The Kubernetes client of all components.

Objects are `api` Structs, or plain dicts when sent. A decoded object is never sent back as a whole, because its Struct
may lack fields: changes are patches.
"""

import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import aiohttp
import msgspec

from api import errors
from api.k8s.resource import Resource, resource_of
from api.version import VERSION
from kit import connection, faults, log
from kit.events import EventRecorder
from kit.session import TRANSPORT_ERRORS, ApiSession, Refused

T = TypeVar("T")
Patch = Mapping[str, Any] | Sequence[Mapping[str, Any]]
PatchKind = Literal["merge", "json", "strategic"]
Propagation = Literal["Background", "Foreground", "Orphan"]
Selector = Mapping[str, str] | str | None

REQUEST_SECONDS = 20.0
LIST_SECONDS = 60.0
WATCH_SECONDS = 300.0
"""Requested length of a watch, randomized up to twice that; then the watch is resumed."""
CHUNK = 500
"""Maximum number of objects in one list response."""
LINE_LIMIT = 16 << 20
"""Maximum size of a watch event in bytes. etcd limits objects to 1.5 MiB."""
EXPIRED = 410
UNDECODABLE = "Undecodable"
"""Reason of the fault when a response cannot be decoded. If it is the response of a write, the write was done."""

_CONTENT = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
_PARTIAL = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"

_log = log.logger(component="kube")


class _ListMeta(msgspec.Struct, gc=False):
    resourceVersion: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct, gc=False):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct, gc=False):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct, gc=False):
    metadata: _ListMeta


class _DeletedMeta(msgspec.Struct, gc=False, frozen=True):
    deletionTimestamp: str | None = None


class _Deleted(msgspec.Struct, gc=False):
    kind: str = ""
    metadata: _DeletedMeta = _DeletedMeta()


class Undecodable(msgspec.Struct, gc=False, frozen=True):
    """An object that cannot be decoded, with the error. `metadata` is its raw metadata."""

    metadata: dict[str, Any]
    message: str


OnUndecodable = Callable[[Undecodable], None]


class _Named(msgspec.Struct, gc=False):
    metadata: dict[str, Any]


def selector_text(selector: Selector) -> str | None:
    """The query parameter of a label or field selector. A mapping selects by equality."""
    if not selector:
        return None
    if isinstance(selector, str):
        return selector
    return ",".join(f"{key}={value}" for key, value in selector.items())


class _Decoders:
    """A cache of JSON decoders by Struct."""

    def __init__(self) -> None:
        self._made: dict[type, msgspec.json.Decoder[Any]] = {}

    def decode(self, kind: type[T], data: bytes | msgspec.Raw) -> T:
        decoder = self._made.get(kind)
        if decoder is None:
            decoder = self._made[kind] = msgspec.json.Decoder(kind)
        obj: T = decoder.decode(data)
        meta = getattr(obj, "metadata", None)
        if isinstance(meta, msgspec.Struct) and getattr(meta, "managedFields", None) is not None:
            # The largest part of many objects, and never used.
            msgspec.structs.force_setattr(meta, "managedFields", None)
        return obj

    def each(self, kind: type[T], raw: msgspec.Raw, bad: OnUndecodable) -> T | None:
        """The decoded object, or None after calling `bad`: one undecodable object must not hide the others."""
        try:
            return self.decode(kind, raw)
        except msgspec.ValidationError as error:
            named = msgspec.json.decode(raw, type=_Named)
            named.metadata.pop("managedFields", None)
            bad(Undecodable(named.metadata, str(error)))
            return None


class Kube:
    """A client of one API server. All methods raise `api.errors`; every request has a timeout."""

    def __init__(self, where: connection.ApiConnection, user_agent: str, host: str = "") -> None:
        self._where = where
        self._user_agent = user_agent if "/" in user_agent else f"hyperlet-{user_agent}/{VERSION}"
        self._api = ApiSession(where, [("User-Agent", self._user_agent)])
        self._decoders = _Decoders()
        self.calls: Counter[tuple[str, str, int]] = Counter()
        """Number of requests by verb, resource (with subresource) and HTTP status (0: no response)."""
        self._recorder = EventRecorder(self, self._user_agent.split("/", maxsplit=1)[0], host)

    @classmethod
    def connect(cls, user_agent: str, kubeconfig: str | None = None, host: str = "") -> "Kube":
        """A client for `kubeconfig`, else $KUBECONFIG, else the pod's service account.

        `user_agent` is a component (`controller` becomes `hyperlet-controller/<version>`) or a complete User-Agent.
        `host` is the node name in the source of its Events, for components that run on each node. No connection is
        opened before the first request.
        """
        return cls(connection.load(kubeconfig), user_agent, host)

    @property
    def role(self) -> str:
        """The component in the source of Events, such as `hyperlet-controller`."""
        return self._user_agent.split("/", maxsplit=1)[0]

    @property
    def namespace(self) -> str:
        """The namespace of the kubeconfig's context or of the pod."""
        return self._where.namespace

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections."""
        await self._api.close()

    # ---- objects -----------------------------------------------------------------------------------------------------

    async def get(self, kind: type[T], namespace: str | None, name: str) -> T:
        """One object. Raises NotFound."""
        place = resource_of(kind)
        return self._decoded(kind, await self._call("get", place, "GET", place.path(namespace, name)))

    async def exists(self, kind: type[Any], namespace: str | None, name: str) -> bool:
        """Whether an object exists. Requests only its metadata."""
        place = resource_of(kind)
        try:
            await self._call("get", place, "GET", place.path(namespace, name), headers={"Accept": _PARTIAL})
        except errors.NotFound:
            return False
        return True

    async def list(
        self,
        kind: type[T],
        namespace: str | None = None,
        labels: Selector = None,
        fields: Selector = None,
        bad: OnUndecodable | None = None,
    ) -> tuple[Sequence[T], str]:
        """All matching objects, fetched in chunks, and the resourceVersion to watch from.

        Undecodable objects are skipped, logged, and passed to `bad`.
        """
        place = resource_of(kind)
        params = _params(limit=str(CHUNK), labelSelector=selector_text(labels), fieldSelector=selector_text(fields))
        items: list[T] = []
        refused = _error_message(place, bad)
        while True:
            body = await self._call("list", place, "GET", place.path(namespace), params=params, seconds=LIST_SECONDS)
            page = msgspec.json.decode(body, type=_List)
            for raw in page.items or ():
                if (obj := self._decoders.each(kind, raw, refused)) is not None:
                    items.append(obj)
            if not page.metadata.continue_:
                return items, page.metadata.resourceVersion
            params["continue"] = page.metadata.continue_

    async def watch(
        self,
        kind: type[T],
        resource_version: str,
        namespace: str | None = None,
        labels: Selector = None,
        fields: Selector = None,
        bad: OnUndecodable | None = None,
    ) -> AsyncGenerator[tuple[str, T | str], None]:
        """Changes after `resource_version`: ADDED, MODIFIED and DELETED with the object, BOOKMARK with a version.

        Ends when the server ends the watch. Raises Expired if the resourceVersion is too old (list again), and
        ApiUnavailable if the connection is lost.
        """
        place = resource_of(kind)
        seconds = int(WATCH_SECONDS * (1 + random.random()))
        params = _params(
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=resource_version,
            timeoutSeconds=str(seconds),
            labelSelector=selector_text(labels),
            fieldSelector=selector_text(fields),
        )
        refused = _error_message(place, bad)
        async with self._send("watch", place, "GET", place.path(namespace), params=params, seconds=None) as response:
            _keep_alive(response)
            async for line in _lines(response, seconds + REQUEST_SECONDS):
                event = msgspec.json.decode(line, type=_Event)
                if event.type == "BOOKMARK":
                    yield event.type, msgspec.json.decode(event.object, type=_Bookmark).metadata.resourceVersion
                elif event.type == "ERROR":
                    raise faults.error_of(faults.parse(EXPIRED, bytes(event.object)))
                elif (obj := self._decoders.each(kind, event.object, refused)) is not None:
                    yield event.type, obj

    async def create(self, kind: type[T], obj: Any, namespace: str | None = None, dry_run: bool = False) -> T:
        """Creates an object (a Struct or a dict). Raises AlreadyExists, Forbidden (quota, admission), InvalidObject."""
        place = resource_of(kind)
        # A dict is not converted: it may contain encoded JSON (msgspec.Raw).
        body = dict(obj) if isinstance(obj, dict) else msgspec.to_builtins(obj)
        body.setdefault("apiVersion", place.api_version)
        body.setdefault("kind", place.kind)
        params = _params(dryRun="All" if dry_run else None)
        path = place.path(namespace or body["metadata"].get("namespace"))
        return self._decoded(kind, await self._call("create", place, "POST", path, params=params, body=body))

    async def patch(
        self,
        kind: type[T],
        namespace: str | None,
        name: str,
        patch: Patch,
        subresource: str | None = None,
        patch_kind: PatchKind = "merge",
        dry_run: bool = False,
    ) -> T:
        """Patches an object. Raises Conflict if `metadata.resourceVersion` or `uid` in a merge patch do not match."""
        place = resource_of(kind)
        headers = {"Content-Type": _CONTENT[patch_kind]}
        path = place.path(namespace, name, subresource)
        params = _params(dryRun="All" if dry_run else None)
        body = await self._call(
            "patch", place, "PATCH", path, params=params, body=patch, headers=headers, subresource=subresource
        )
        return self._decoded(kind, body)

    async def delete(
        self,
        kind: type[T],
        namespace: str | None,
        name: str,
        uid: str | None = None,
        grace_seconds: int | None = None,
        propagation: Propagation | None = None,
        resource_version: str | None = None,
    ) -> T | None:
        """Deletes an object; does nothing if it does not exist. Raises Conflict if `uid` or version do not match.

        Returns the object if its deletion is delayed by a grace period or finalizers, else None.
        """
        place = resource_of(kind)
        options = _params(
            gracePeriodSeconds=grace_seconds,
            propagationPolicy=propagation,
            preconditions=_params(uid=uid, resourceVersion=resource_version) or None,
        )
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        try:
            answer = await self._call("delete", place, "DELETE", place.path(namespace, name), body=body)
        except errors.NotFound:
            return None
        said = msgspec.json.decode(answer, type=_Deleted)
        return self._decoded(kind, answer) if said.kind == place.kind and said.metadata.deletionTimestamp else None

    async def event(self, obj: Any, reason: str, message: str, type: Literal["Normal", "Warning"] = "Normal") -> None:
        """Records an Event about `obj`; repetitions are counted, floods dropped. Never raises."""
        await self._recorder.record(obj, reason, message, type)

    # ---- discovery ---------------------------------------------------------------------------------------------------

    async def server_version(self) -> str:
        """The API server's version, such as v1.36.0."""
        place = Resource("", "v1", "Version", "version", False)
        return str(msgspec.json.decode(await self._call("get", place, "GET", "/version"))["gitVersion"])

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _decoded(self, kind: type[T], body: bytes) -> T:
        try:
            return self._decoders.decode(kind, body)
        except msgspec.ValidationError as error:
            raise errors.InvalidObject([errors.Fault("", UNDECODABLE, str(error))]) from error

    async def _call(
        self,
        verb: str,
        place: Resource,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = REQUEST_SECONDS,
        subresource: str | None = None,
    ) -> bytes:
        async with self._send(verb, place, method, path, params, body, headers, seconds, subresource) as response:
            try:
                return await response.read()
            except TRANSPORT_ERRORS as error:
                raise faults.transport_error(error, f"{method} {path}") from error

    @contextlib.asynccontextmanager
    async def _send(
        self,
        verb: str,
        place: Resource,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = REQUEST_SECONDS,
        subresource: str | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to a request. Raises error statuses.

        A response with Retry-After is waited for and the request repeated, as long as the whole takes no longer than
        `seconds` (REQUEST_SECONDS if None).
        """
        data = None if body is None else msgspec.json.encode(body)
        sent = {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
        counted = (verb, f"{place.plural}/{subresource}" if subresource else place.plural)

        def count(code: int) -> None:
            self.calls[(*counted, code)] += 1

        try:
            patience = REQUEST_SECONDS if seconds is None else seconds
            response = await self._api.request(method, path, params, data, sent, seconds, count, patience=patience)
        except Refused as refusal:
            raise faults.error_of(refusal.status, refusal.retry_seconds or 0.0) from refusal
        except TRANSPORT_ERRORS as error:
            count(0)
            raise faults.transport_error(error, f"{method} {path}") from error
        async with response:
            yield response


def _params(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _error_message(place: Resource, bad: OnUndecodable | None) -> OnUndecodable:
    def tell(item: Undecodable) -> None:
        _log.warning(
            "Cannot decode an object: ignored",
            resource=place.plural,
            why=item.message,
            namespace=item.metadata.get("namespace"),
            name=item.metadata.get("name"),
        )
        if bad is not None:
            bad(item)

    return tell


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    """Sets TCP keepalive, so that a lost connection of an idle watch is detected within 30 s (tcp(7))."""
    transport = response.connection.transport if response.connection else None
    sock = transport.get_extra_info("socket") if transport else None
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def _lines(response: aiohttp.ClientResponse, seconds: float) -> AsyncIterator[bytes]:
    """The lines of a streamed response, each at most LINE_LIMIT bytes, for at most `seconds`."""
    rest = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in response.content.iter_any():
                rest += chunk
                *lines, tail = rest.split(b"\n") if b"\n" in chunk else (rest,)
                for line in lines:
                    yield bytes(line)
                rest = bytearray(tail)
                if len(rest) > LINE_LIMIT:
                    raise errors.ApiUnavailable(f"A watch event exceeds {LINE_LIMIT} bytes")
    except TRANSPORT_ERRORS as error:
        raise faults.transport_error(error, "watch") from error
