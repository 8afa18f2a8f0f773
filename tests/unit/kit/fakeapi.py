"""A faithful in-memory fake of the API server, served over HTTP on loopback.

Lists with chunks, watches with bookmarks and 410, merge and strategic patches, preconditions, finalizers, graceful
deletion of pods, dry runs. It counts requests, and can refuse them or be unavailable.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import web

Json = dict[str, Any]
Key = tuple[str, str, str]

PATH = re.compile(
    r"^/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)(?:/namespaces/(?P<ns>[^/]+))?/(?P<plural>[a-z-]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?$"
)
STATUS_KINDS = {"pods", "virtualmachines", "kubevirts", "nodes"}


class Refusal(Exception):
    """A Status response. `retry_after`: that header."""

    def __init__(
        self, code: int, reason: str, message: str, causes: list[Json] | None = None, retry_after: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.headers = {"Retry-After": retry_after} if retry_after else {}
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
            "details": {"causes": causes or []},
        }


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def strategic(target: Json, patch: Json) -> Json:
    """A merge in which conditions are merged by type, and container statuses by name."""
    result = merge(target, patch)
    for field, by in (("conditions", "type"), ("containerStatuses", "name")):
        if field in patch.get("status", {}):
            entries = {entry[by]: entry for entry in target.get("status", {}).get(field, [])}
            for entry in patch["status"][field]:
                entries[entry[by]] = {**entries.get(entry[by], {}), **entry}
            result["status"][field] = list(entries.values())
    return result


def resized(pod: Json, patch: Json) -> Json:
    """The part of a strategic patch that the subresource `resize` applies: CPU and memory of containers, by name."""
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


def json_patched(target: Json, operations: list[Json]) -> Json:
    """RFC 6902: test, add, replace, remove. A failed test is a 422, as on a real server."""
    new = copy.deepcopy(target)
    for operation in operations:
        *parents, last = [step.replace("~1", "/").replace("~0", "~") for step in operation["path"].split("/")[1:]]
        node: Any = new
        for step in parents:
            node = node[int(step)] if isinstance(node, list) else node[step]
        at: Any = int(last) if isinstance(node, list) and last != "-" else last
        match operation["op"]:
            case "test":
                if node[at] != operation["value"]:
                    raise Refusal(422, "Invalid", f"the test of {operation['path']} failed")
            case "remove":
                del node[at]
            case "add" if isinstance(node, list):
                node.insert(len(node) if last == "-" else at, operation["value"])
            case _:
                node[at] = operation["value"]
    return new


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
        self.conflicts = 0
        self.agents: set[str] = set()
        self.refuse: Callable[[str, str, Json], Refusal | None] = lambda verb, plural, body: None
        self.tokens: set[str] = {"good"}
        self.away = False
        self.keeps_image_volumes = False
        self.unserved: set[str] = set()
        """Plurals of kinds whose CustomResourceDefinition is missing."""
        self._news = asyncio.Condition()
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

    # ---- helpers for tests

    def find(self, plural: str, name: str, namespace: str = "default") -> Json | None:
        return self.objects.get((plural, namespace, name))

    def of(self, plural: str) -> list[Json]:
        return [obj for key, obj in self.objects.items() if key[0] == plural]

    async def put(self, plural: str, obj: Json) -> Json:
        """Stores an object, as another client would."""
        meta = obj.setdefault("metadata", {})
        meta.setdefault("uid", str(uuid4()))
        meta.setdefault("creationTimestamp", _now())
        key = (plural, meta.get("namespace", ""), meta["name"])
        return await self._store(key, "MODIFIED" if key in self.objects else "ADDED", obj)

    async def patch(self, plural: str, name: str, patch: Json, namespace: str = "default") -> Json:
        key = (plural, namespace, name)
        return await self._store(key, "MODIFIED", strategic(self.objects[key], patch))

    async def remove(self, plural: str, name: str, namespace: str = "default") -> None:
        """Deletes immediately."""
        await self._store((plural, namespace, name), "DELETED", None)

    async def delete(self, plural: str, name: str, namespace: str = "default") -> None:
        """Deletes as `kubectl delete` would."""
        await self._delete((plural, namespace, name), {})

    def compact(self) -> None:
        """Drops the history: older watches end with 410."""
        self.compacted = self.version
        self.log.clear()

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
        if match is None:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        plural, namespace, name, sub = match["plural"], match["ns"] or "", match["name"], match["sub"]
        if plural in self.unserved:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        body = await request.json() if request.can_read_body else {}
        verb = {
            "GET": "get" if name else "watch" if "watch" in request.query else "list",
            "POST": "create",
            "PATCH": "patch",
            "DELETE": "delete",
        }[request.method]
        resource = f"{plural}/{sub}" if sub else plural
        self.calls[verb, resource] += 1
        try:
            return await self._do(request, verb, plural, namespace, name, sub, body)
        except Refusal as refusal:
            if refusal.code == 409:
                # A conflict of two writers depends on timing: not counted.
                self.calls[verb, resource] -= 1
                self.conflicts += 1
            raise

    async def _do(
        self,
        request: web.Request,
        verb: str,
        plural: str,
        namespace: str,
        name: str | None,
        sub: str | None,
        body: Json,
    ) -> web.StreamResponse:
        resource = f"{plural}/{sub}" if sub else plural
        if refusal := self.refuse(verb, resource, body):
            raise refusal
        if verb == "list":
            return self._list(request, plural, namespace)
        if verb == "watch":
            return await self._watch(request, plural, namespace)
        if verb == "create":
            return web.json_response(await self._create(plural, namespace, body, "dryRun" in request.query), status=201)
        key = (plural, namespace, name or "")
        if key not in self.objects:
            raise Refusal(404, "NotFound", f'{plural} "{name}" not found')
        if verb == "get":
            return web.json_response(self.objects[key])
        if verb == "delete":
            return web.json_response(await self._delete(key, body))
        content, dry_run = request.headers["Content-Type"], "dryRun" in request.query
        return web.json_response(await self._patch(key, body, sub, content, dry_run))

    def _list(self, request: web.Request, plural: str, namespace: str) -> web.Response:
        found = [obj for obj in self.of(plural) if self._matches(request, obj, namespace)]
        start, limit = int(request.query.get("continue") or 0), int(request.query.get("limit") or len(found) or 1)
        meta = {"resourceVersion": str(self.version)}
        if start + limit < len(found):
            meta["continue"] = str(start + limit)
        return web.json_response({"kind": "List", "metadata": meta, "items": found[start : start + limit]})

    def _matches(self, request: web.Request, obj: Json, namespace: str) -> bool:
        meta = obj["metadata"]
        if namespace and meta.get("namespace") != namespace:
            return False
        field, _, value = request.query.get("fieldSelector", "").partition("=")
        if field == "metadata.name" and meta["name"] != value:
            return False
        wanted = [pair.split("=", 1) for pair in (request.query.get("labelSelector") or "").split(",") if "=" in pair]
        chosen = [pair.split("=", 1) for pair in (request.query.get("fieldSelector") or "").split(",") if "=" in pair]
        fields = [pair for pair in chosen if pair[0] == "spec.restartPolicy"]
        return all(meta.get("labels", {}).get(key) == value for key, value in wanted) and all(
            obj.get("spec", {}).get(key.partition(".")[2]) == value for key, value in fields
        )

    async def _watch(self, request: web.Request, plural: str, namespace: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        position = int(request.query["resourceVersion"])
        if position < self.compacted:
            status = Refusal(410, "Expired", "too old resource version").body
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return response
        with contextlib.suppress(ConnectionError):
            await self._tell(request, response, plural, namespace, position)
        return response

    async def _tell(
        self,
        request: web.Request,
        response: web.StreamResponse,
        plural: str,
        namespace: str,
        position: int,
    ) -> None:
        """Writes the history after `position`, then new events."""
        await response.write(_line("BOOKMARK", {"metadata": {"resourceVersion": str(max(position, self.compacted))}}))
        while not self.away:
            for version, kind, changed, obj in list(self.log):
                if version <= position or changed != plural:
                    continue
                before = self.before.get(version)
                if self._matches(request, obj, namespace):
                    await response.write(_line(kind, obj))
                elif before is not None and self._matches(request, before, namespace):
                    await response.write(_line("DELETED", before))
            position = self.version
            async with self._news:
                await self._news.wait_for(lambda at=position: self.version > at or self.away)
        if request.transport:
            request.transport.close()

    async def leave(self) -> None:
        """Becomes unavailable: running watches break, requests get no response."""
        self.away = True
        async with self._news:
            self._news.notify_all()

    # ---- the store

    async def _create(self, plural: str, namespace: str, body: Json, dry_run: bool) -> Json:
        meta = body["metadata"]
        name = meta.get("name") or f"{meta['generateName']}{uuid4().hex[:5]}"
        key = (plural, namespace, name)
        if key in self.objects:
            raise Refusal(409, "AlreadyExists", f'{plural} "{name}" already exists')
        if plural == "pods":
            body["status"] = {"phase": "Pending", "qosClass": "Burstable"}
            if not self.keeps_image_volumes:
                for volume in body["spec"].get("volumes", []):
                    volume.pop("image", None)
        if plural == "virtualmachines":
            body.pop("status", None)
        body["metadata"] = {
            **meta,
            "name": name,
            "namespace": namespace,
            "uid": str(uuid4()),
            "generation": 1,
            "creationTimestamp": _now(),
            "managedFields": [{"manager": "fake"}],
        }
        return body if dry_run else await self._store(key, "ADDED", body)

    async def _patch(self, key: Key, patch: Any, sub: str | None, content: str, dry_run: bool = False) -> Json:
        old = self.objects[key]
        if isinstance(patch, list):
            new = json_patched(old, patch)
            return old if new == old else await self._store(key, "MODIFIED", new)
        sent = patch.get("metadata", {})
        if sent.get("resourceVersion") not in (None, old["metadata"]["resourceVersion"]):
            raise Refusal(409, "Conflict", "the object has been modified")
        if sent.get("uid") not in (None, old["metadata"]["uid"]):
            cause = {"reason": "FieldValueInvalid", "field": "metadata.uid", "message": "field is immutable"}
            raise Refusal(422, "Invalid", "metadata.uid: field is immutable", [cause])
        if sub == "status":
            # A pod's status subresource accepts annotations and labels as well: CNI plugins rely on it.
            kept = {"status", "metadata"} if key[0] == "pods" else {"status"}
            patch = {field: value for field, value in patch.items() if field in kept}
        elif sub == "resize":
            patch = {"metadata": sent, **resized(old, patch)}
        elif key[0] in STATUS_KINDS:
            patch = {field: value for field, value in patch.items() if field != "status"}
        new = strategic(old, patch) if "strategic" in content else merge(old, patch)
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        if new == old:
            return old
        if dry_run:
            return new
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers") and key[0] != "pods":
            # As a real server: returns the old object with its finalizer.
            return await self._store(key, "DELETED", None)
        return await self._store(key, "MODIFIED", new)

    async def _delete(self, key: Key, options: Json) -> Json:
        obj = copy.deepcopy(self.objects[key])
        meta = obj["metadata"]
        preconditions = options.get("preconditions") or {}
        for field in ("uid", "resourceVersion"):
            if preconditions.get(field) not in (None, meta[field]):
                raise Refusal(409, "Conflict", f"the {field} in the precondition does not match")
        grace = options.get("gracePeriodSeconds", obj.get("spec", {}).get("terminationGracePeriodSeconds", 30))
        graceful = key[0] == "pods" and grace and obj.get("spec", {}).get("nodeName")
        ended = obj.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if meta.get("finalizers") or (graceful and not ended):
            if not meta.get("deletionTimestamp"):
                meta["deletionTimestamp"] = _now()
                return await self._store(key, "MODIFIED", obj)
            return obj
        await self._store(key, "DELETED", None)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    async def _store(self, key: Key, change: str, obj: Json | None) -> Json:
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
        async with self._news:
            self._news.notify_all()
        return stored


def _line(kind: str, obj: Json) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
