"""An in-memory API server on loopback that behaves as a real one, for unit and node tests.

Namespaces, label and field selectors, consistent lists in chunks, watches from a version with bookmarks and 410,
merge, strategic and JSON patches, status subresources, preconditions on UID and version, generated names, finalizers,
graceful deletion of pods, dry runs, and `Status` responses with the real server's reasons. There is no schema, no
admission and no garbage collection. It counts requests, and can refuse them, throttle them or be unavailable.

Objects are kept by plural, so that two groups with the same plural must not be mixed.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from aiohttp import web

from api.kinds.catalog import CATALOG
from tests.fakes.patches import PatchFailed, json_patched, merge, strategic
from tests.fakes.selectors import BadSelector, fields_match, labels_match

Json = dict[str, Any]
Key = tuple[str, str, str]
"""Plural, namespace (empty for cluster-wide kinds) and name."""

PATH = re.compile(
    r"^/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)(?:/namespaces/(?P<ns>[^/]+))?/(?P<plural>[a-z-]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?$"
)
CUSTOM = {kind.plural: kind.has_status for kind in CATALOG}
"""Kinds of CRDs, and whether they have a status subresource."""
METADATA_BY_STATUS = {"pods", "nodes"}
"""Kinds whose status subresource accepts labels and annotations: CNI plugins rely on it."""
STATUS_KINDS = {*METADATA_BY_STATUS, "persistentvolumeclaims", *(plural for plural, has in CUSTOM.items() if has)}
FINALIZERS_WHILE_DELETED = "no new finalizers can be added if the object is being deleted"


class Refusal(Exception):
    """A Status response. `retry_after`: that header; if it is a number of seconds, the Status has it, too."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        causes: list[Json] | None = None,
        retry_after: int | str | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.headers = {"Retry-After": str(retry_after)} if retry_after is not None else {}
        if isinstance(retry_after, int):
            details["retryAfterSeconds"] = retry_after
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
            "details": {**details, "causes": causes or []},
        }


class Target(NamedTuple):
    """What a request is about."""

    group: str
    plural: str
    namespace: str
    name: str
    subresource: str

    @property
    def resource(self) -> str:
        """With the subresource, as in RBAC rules."""
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural

    @property
    def qualified(self) -> str:
        """Resource and group, as in messages."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def refusal(self, code: int, reason: str, message: str, causes: list[Json] | None = None) -> Refusal:
        """A Refusal with the details of the object."""
        return Refusal(code, reason, message, causes, name=self.name, group=self.group, kind=self.plural)

    def conflict(self, why: str) -> Refusal:
        """Another writer was faster, or a precondition failed."""
        message = f'Operation cannot be fulfilled on {self.qualified} "{self.name}": {why}'
        return self.refusal(409, "Conflict", message)

    def invalid(self, field: str, why: str, reason: str = "FieldValueInvalid") -> Refusal:
        """A field that must not have this value."""
        message = f'{self.qualified} "{self.name}" is invalid: {field}: {why}'
        return self.refusal(422, "Invalid", message, [{"reason": reason, "message": why, "field": field}])


class Write(NamedTuple):
    """A write that a client made: verb, resource (with subresource) and body."""

    verb: str
    resource: str
    body: Any


class FakeApi:
    """`async with FakeApi() as api:` then connect to `api.kubeconfig(folder)`."""

    def __init__(self) -> None:
        self.objects: dict[Key, Json] = {}
        self.version = 100
        self.log: list[tuple[int, str, str, Json]] = []
        self.before: dict[int, Json] = {}
        """Objects before a version: a watch whose selector no longer matches gets DELETED."""
        self.compacted = 0
        self.calls: Counter[tuple[str, str]] = Counter()
        self.writes: list[Write] = []
        """Successful writes of clients, in order."""
        self.on_write: Callable[[Write], Awaitable[None]] | None = None
        """Called after a write of a client was executed, before it is answered."""
        self.conflicts = 0
        self.agents: set[str] = set()
        self.refuse: Callable[[str, str, Json], Refusal | None] = lambda verb, plural, body: None
        self.answers: dict[str, Callable[[Json], Json]] = {}
        """Responses to creations of kinds that are answered and not stored, such as reviews, by plural."""
        self.tokens: set[str] = {"good"}
        self.away = False
        self.throttled = 0
        """How many of the next requests get 429 with Retry-After."""
        self.keeps_image_volumes = False
        self.unserved: set[str] = set()
        """Plurals of kinds whose CustomResourceDefinition is missing."""
        self._pages: dict[str, tuple[int, list[Json]]] = {}
        """The rest of a list by continue token, with its version."""
        self._watchers: set[asyncio.Event] = set()
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def __aenter__(self) -> FakeApi:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner:
            await self._runner.cleanup()

    def kubeconfig(self, folder: Path, token: str = "good") -> str:
        path = folder / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "fake",
                    "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "contexts": [
                        {"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "default"}}
                    ],
                    "users": [{"name": "fake", "user": {"token": token}}],
                }
            )
        )
        return str(path)

    # ---- for tests: what other clients do, without checks

    def find(self, plural: str, name: str, namespace: str = "default") -> Json | None:
        """The stored object, or None."""
        return self.objects.get((plural, namespace, name))

    def of(self, plural: str) -> list[Json]:
        """All objects of a kind."""
        return [obj for key, obj in self.objects.items() if key[0] == plural]

    def put(self, plural: str, obj: Json) -> Json:
        """Creates or replaces an object."""
        meta = obj.setdefault("metadata", {})
        meta.setdefault("uid", str(uuid4()))
        meta.setdefault("creationTimestamp", _now())
        key = (plural, meta.get("namespace", ""), meta["name"])
        return self._store(key, "MODIFIED" if key in self.objects else "ADDED", obj)

    def patch(self, plural: str, name: str, patch: Json, namespace: str = "default") -> Json:
        """Merges a patch into an object, its status included."""
        key = (plural, namespace, name)
        return self._store(key, "MODIFIED", strategic(self.objects[key], patch))

    def remove(self, plural: str, name: str, namespace: str = "default") -> None:
        """Deletes immediately."""
        self._store((plural, namespace, name), "DELETED", None)

    def delete(self, plural: str, name: str, namespace: str = "default") -> None:
        """Deletes as `kubectl delete` would."""
        self._delete(Target("", plural, namespace, name, ""), {})

    def compact(self) -> None:
        """Drops the history: older watches and unfinished lists end with 410."""
        self.compacted = self.version
        self.log.clear()

    def leave(self) -> None:
        """Becomes unavailable: running watches break, requests get no response."""
        self.away = True
        self._wake()

    # ---- HTTP

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self.away:
            if request.transport:
                request.transport.close()
            raise web.HTTPServiceUnavailable
        self.agents.add(request.headers.get("User-Agent", ""))
        try:
            if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
                raise Refusal(401, "Unauthorized", "Unauthorized")
            return await self._answer(request)
        except Refusal as refusal:
            return web.json_response(refusal.body, status=refusal.code, headers=refusal.headers)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        match = PATH.match(request.path)
        if match is None or match["plural"] in self.unserved:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        target = Target(
            match["group"] or "", match["plural"], match["ns"] or "", match["name"] or "", match["sub"] or ""
        )
        body = await request.json() if request.can_read_body else {}
        verb = {
            "GET": "get" if target.name else "watch" if "watch" in request.query else "list",
            "POST": "create",
            "PATCH": "patch",
            "DELETE": "delete",
        }[request.method]
        self.calls[verb, target.resource] += 1
        try:
            response = await self._do(request, verb, target, body)
        except Refusal as refusal:
            if refusal.code == 409:
                # A conflict of two writers depends on timing: not counted.
                self.calls[verb, target.resource] -= 1
                self.conflicts += 1
            raise
        if verb in ("create", "patch", "delete") and "dryRun" not in request.query:
            write = Write(verb, target.resource, body)
            self.writes.append(write)
            if self.on_write is not None:
                await self.on_write(write)
        return response

    async def _do(self, request: web.Request, verb: str, target: Target, body: Json) -> web.StreamResponse:
        if self.throttled:
            self.throttled -= 1
            message = "Too many requests, please try again later."
            raise Refusal(429, "TooManyRequests", message, retry_after=1)
        if refusal := self.refuse(verb, target.resource, body):
            raise refusal
        dry_run = "dryRun" in request.query
        if verb == "list":
            return self._list(request, target)
        if verb == "watch":
            return await self._watch(request, target)
        if verb == "create" and target.plural in self.answers:
            return web.json_response(self.answers[target.plural](body), status=201)
        if verb == "create":
            return web.json_response(self._create(target, body, dry_run), status=201)
        obj = self.objects.get((target.plural, target.namespace, target.name))
        if obj is None:
            raise target.refusal(404, "NotFound", f'{target.qualified} "{target.name}" not found')
        if verb == "get":
            if "as=PartialObjectMetadata" in request.headers.get("Accept", ""):
                obj = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}
            return web.json_response(obj)
        if verb == "delete":
            return web.json_response(self._delete(target, body))
        return web.json_response(self._patch(target, body, request.headers["Content-Type"], dry_run))

    # ---- list and watch

    def _list(self, request: web.Request, target: Target) -> web.Response:
        token = request.query.get("continue", "")
        if token:
            version, rest = self._pages.pop(token, (0, []))
            if version < self.compacted or version == 0:
                message = "The provided continue parameter is too old to display a consistent list result."
                raise Refusal(410, "Expired", message)
        else:
            version, rest = self.version, [obj for obj in self.of(target.plural) if self._matches(request, target, obj)]
        limit = int(request.query.get("limit") or 0) or len(rest)
        meta: Json = {"resourceVersion": str(version)}
        if limit < len(rest):
            # A later page is of the same version, whatever happens meanwhile.
            meta |= {"continue": uuid4().hex, "remainingItemCount": len(rest) - limit}
            self._pages[meta["continue"]] = (version, rest[limit:])
        return web.json_response({"kind": "List", "apiVersion": "v1", "metadata": meta, "items": rest[:limit]})

    def _matches(self, request: web.Request, target: Target, obj: Json) -> bool:
        meta = obj["metadata"]
        if target.namespace and meta.get("namespace") != target.namespace:
            return False
        try:
            return labels_match(request.query.get("labelSelector", ""), meta.get("labels") or {}) and fields_match(
                request.query.get("fieldSelector", ""), target.plural, obj
            )
        except BadSelector as error:
            raise Refusal(400, "BadRequest", str(error)) from error

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        # Refuses a bad selector before the response begins.
        present = [obj for obj in self.of(target.plural) if self._matches(request, target, obj)]
        position = int(request.query.get("resourceVersion") or 0)
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            if position and position < self.compacted:
                await response.write(_line("ERROR", _expired(position, self.compacted)))
                return response
            if not position:
                position = self.version
                for obj in present:
                    await response.write(_line("ADDED", obj))
            await self._stream_history(request, response, target, position)
        return response

    async def _stream_history(
        self, request: web.Request, response: web.StreamResponse, target: Target, position: int
    ) -> None:
        """Writes the history after `position`, then new events, until `timeoutSeconds` are over."""
        end = asyncio.get_running_loop().time() + float(request.query.get("timeoutSeconds") or 3600)
        if request.query.get("allowWatchBookmarks") == "true":
            version = str(max(position, self.compacted))
            await response.write(_line("BOOKMARK", {"metadata": {"resourceVersion": version}}))
        news = asyncio.Event()
        self._watchers.add(news)
        try:
            while not self.away:
                news.clear()
                if position < self.compacted:
                    await response.write(_line("ERROR", _expired(position, self.compacted)))
                    return
                for version, change, plural, obj in list(self.log):
                    if version > position and plural == target.plural:
                        await self._event(request, response, target, version, change, obj)
                        position = version
                # Events that were stored during a write above are found in the next round.
                if not news.is_set():
                    position = max(position, self.version)
                try:
                    async with asyncio.timeout_at(end):
                        await news.wait()
                except TimeoutError:
                    return
        finally:
            self._watchers.discard(news)
        if request.transport:
            request.transport.close()

    async def _event(
        self,
        request: web.Request,
        response: web.StreamResponse,
        target: Target,
        version: int,
        change: str,
        obj: Json,
    ) -> None:
        """Writes one change, as it is seen through the selectors."""
        before = self.before.get(version)
        matched = before is not None and self._matches(request, target, before)
        if change == "DELETED":
            if matched:
                await response.write(_line("DELETED", obj))
        elif self._matches(request, target, obj):
            await response.write(_line("MODIFIED" if matched else "ADDED", obj))
        elif matched:
            await response.write(_line("DELETED", before))

    # ---- writes of clients

    def _create(self, target: Target, body: Json, dry_run: bool) -> Json:
        meta = body["metadata"]
        if meta.get("resourceVersion"):
            raise Refusal(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        if meta.get("namespace", target.namespace) != target.namespace:
            message = "the namespace of the provided object does not match the namespace sent on the request"
            raise Refusal(400, "BadRequest", message)
        if not meta.get("name") and not meta.get("generateName"):
            raise target.invalid("metadata.name", "name or generateName is required", "FieldValueRequired")
        name = meta.get("name") or f"{meta['generateName']}{uuid4().hex[:5]}"
        target = target._replace(name=name)
        if target.plural == "pods":
            body["status"] = {"phase": "Pending", "qosClass": "Burstable"}
            if not self.keeps_image_volumes:
                for volume in body["spec"].get("volumes", []):
                    volume.pop("image", None)
        elif CUSTOM.get(target.plural):
            body.pop("status", None)
        key = (target.plural, target.namespace, name)
        if key in self.objects:
            raise target.refusal(409, "AlreadyExists", f'{target.qualified} "{name}" already exists')
        body["metadata"] = {
            **meta,
            "name": name,
            **({"namespace": target.namespace} if target.namespace else {}),
            "uid": str(uuid4()),
            "generation": 1,
            "creationTimestamp": _now(),
            "managedFields": [{"manager": "fake"}],
        }
        return body if dry_run else self._store(key, "ADDED", body)

    def _patch(self, target: Target, patch: Any, content: str, dry_run: bool = False) -> Json:
        key = (target.plural, target.namespace, target.name)
        old = self.objects[key]
        if "json-patch" in content:
            try:
                new = json_patched(old, patch)
            except PatchFailed as error:
                message = f"the server rejected our request due to an error in our request: {error}"
                raise target.refusal(422, "Invalid", message) from error
        elif target.subresource == "resize":
            new = merge(old, {"metadata": patch.get("metadata", {}), **self._resized(target, old, patch)})
        else:
            new = strategic(old, patch) if "strategic" in content else merge(old, patch)
        new = self._checked(target, old, new)
        if new == old or dry_run:
            return new
        meta = new["metadata"]
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and target.plural != "pods":
            # As a real server: returns the old object with its finalizer.
            return self._store(key, "DELETED", None)
        return self._store(key, "MODIFIED", new)

    def _checked(self, target: Target, old: Json, new: Json) -> Json:
        """The object as it is stored: without changes that the endpoint ignores. Raises Refusal for forbidden ones."""
        sent, meta = new["metadata"], old["metadata"]
        if sent.get("resourceVersion") not in (None, meta["resourceVersion"]):
            why = "the object has been modified; please apply your changes to the latest version and try again"
            raise target.conflict(why)
        for field in ("uid", "name", "namespace"):
            if sent.get(field) != meta.get(field):
                raise target.invalid(f"metadata.{field}", "field is immutable")
        if meta.get("deletionTimestamp") and set(sent.get("finalizers") or ()) - set(meta.get("finalizers") or ()):
            raise target.invalid("metadata.finalizers", f"Forbidden: {FINALIZERS_WHILE_DELETED}", "FieldValueForbidden")
        new = copy.deepcopy(new)
        if target.subresource == "status":
            whole = new
            new = {**copy.deepcopy(old), "status": whole.get("status")}
            if target.plural in METADATA_BY_STATUS:
                new["metadata"] = whole["metadata"]
        elif target.plural in STATUS_KINDS:
            new["status"] = copy.deepcopy(old.get("status"))
        if new.get("status") is None:
            new.pop("status", None)
        for field in ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"):
            if field in meta:
                new["metadata"][field] = meta[field]
            else:
                new["metadata"].pop(field, None)
        if self._content(target, new) != self._content(target, old):
            new["metadata"]["generation"] = meta.get("generation", 1) + 1
        return new

    @staticmethod
    def _content(target: Target, obj: Json) -> Any:
        """What `metadata.generation` counts the changes of."""
        if target.plural in CUSTOM and not CUSTOM[target.plural]:
            # Without a status subresource every change but metadata's counts.
            return {field: value for field, value in obj.items() if field != "metadata"}
        return obj.get("spec")

    @staticmethod
    def _resized(target: Target, pod: Json, patch: Json) -> Json:
        """The part of a strategic patch that the subresource `resize` applies: CPU and memory, by container."""
        wanted = {each["name"]: each.get("resources", {}) for each in patch.get("spec", {}).get("containers", ())}
        containers = [
            {**each, "resources": merge(each.get("resources"), wanted.get(each["name"], {}))}
            for each in pod["spec"]["containers"]
        ]
        for before, after in zip(pod["spec"]["containers"], containers, strict=True):
            for kind, amounts in before.get("resources", {}).items():
                if {**amounts, **after["resources"][kind]}.keys() - amounts.keys() - {"cpu", "memory"}:
                    raise Refusal(422, "Invalid", "only cpu and memory resources are mutable")
        return {"spec": {"containers": containers}}

    def _delete(self, target: Target, options: Json) -> Json:
        key = (target.plural, target.namespace, target.name)
        obj = copy.deepcopy(self.objects[key])
        meta = obj["metadata"]
        for field, words in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            wanted = (options.get("preconditions") or {}).get(field)
            if wanted not in (None, meta[field]):
                what = f"{words} in precondition: {wanted}, {words} in object meta: {meta[field]}"
                raise target.conflict(f"Precondition failed: {what}")
        grace = options.get("gracePeriodSeconds", obj.get("spec", {}).get("terminationGracePeriodSeconds", 30))
        graceful = target.plural == "pods" and grace and obj.get("spec", {}).get("nodeName")
        ended = obj.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if meta.get("finalizers") or (graceful and not ended):
            if not meta.get("deletionTimestamp"):
                meta["deletionTimestamp"] = _now()
                if "generation" in meta:
                    meta["generation"] += 1
                return self._store(key, "MODIFIED", obj)
            return obj
        self._store(key, "DELETED", None)
        details = {"name": target.name, "group": target.group, "kind": target.plural, "uid": meta["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    # ---- the store

    def _store(self, key: Key, change: str, obj: Json | None) -> Json:
        self.version += 1
        before = self.objects.get(key)
        stored = copy.deepcopy(obj if obj is not None else self.objects[key])
        stored["metadata"]["resourceVersion"] = str(self.version)
        if obj is None:
            del self.objects[key]
        else:
            self.objects[key] = stored
        self.log.append((self.version, change, key[0], stored))
        if before is not None:
            left = {**before, "metadata": {**before["metadata"], "resourceVersion": str(self.version)}}
            self.before[self.version] = left
        self._wake()
        return stored

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()


def _expired(position: int, oldest: int) -> Json:
    return Refusal(410, "Expired", f"too old resource version: {position} ({oldest})").body


def _line(kind: str, obj: Any) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
