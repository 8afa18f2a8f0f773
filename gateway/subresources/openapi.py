"""OpenAPI documents of the aggregated API: version 2 for all API versions, version 3 for each API version.

The responses are the endpoint's own and a Status, with their media types.
"""

import hashlib
from typing import Any

import msgspec

from api import names
from api.k8s.meta import Json
from api.version import VERSION
from gateway.subresources.endpoints import ENDPOINTS, VERSIONS, Endpoint
from gateway.subresources.options import schema

GROUP = names.SUBRESOURCE_GROUP
_WORDS = {
    "namespace": "Namespace of the object.",
    "name": "Name of the object.",
    "port": "Port in the guest, from 1 to 65535.",
    "protocol": "tcp or udp.",
}
_JSON = "application/json"
_STATUS = "io.hyperlet.subresources.Status"
# The Status of k8s.io/apimachinery, under a different name: the API server renames one of two different definitions
# of the same name when it merges the documents.
_STATUS_SCHEMA: Json = {
    "type": "object",
    "description": "Reason for which a request was refused.",
    "required": ["kind", "apiVersion", "status", "message", "reason", "code"],
    "properties": {
        **{each: {"type": "string"} for each in ("kind", "apiVersion", "status", "message", "reason")},
        "code": {"type": "integer", "format": "int32"},
        "metadata": {"type": "object"},
        "details": {"type": "object"},
    },
}
_TITLE = {"title": "hyperlet subresources", "version": VERSION}
_REFUSALS = {
    "400": "Bad Request",
    "401": "Unauthorized",
    "403": "Forbidden",
    "404": "Not Found",
    "409": "Conflict",
    "413": "Request Entity Too Large",
    "422": "Unprocessable Entity",
    "429": "Too Many Requests",
    "501": "Not Implemented",
    "502": "Bad Gateway",
    "503": "Service Unavailable",
    "504": "Gateway Timeout",
}


def version2() -> Json:
    """All API versions as OpenAPI 2."""
    paths: Json = {}
    for version in VERSIONS:
        for endpoint in ENDPOINTS:
            paths.setdefault(endpoint.path(version), {})[endpoint.method.lower()] = _operation2(endpoint, version)
    return {"swagger": "2.0", "info": _TITLE, "paths": paths, "definitions": _definitions()}


def version3(version: str) -> Json:
    """One API version as OpenAPI 3."""
    paths: Json = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path(version), {})[endpoint.method.lower()] = _operation3(endpoint, version)
    return {"openapi": "3.0.0", "info": _TITLE, "paths": paths, "components": {"schemas": _definitions()}}


def index3() -> Json:
    """Paths of the OpenAPI 3 documents, with a hash for caching."""
    return {"paths": {f"apis/{GROUP}/{each}": {"serverRelativeURL": _address(each)} for each in VERSIONS}}


def _address(version: str) -> str:
    digest = hashlib.sha512(msgspec.json.encode(version3(version))).hexdigest()[:64]
    return f"/openapi/v3/apis/{GROUP}/{version}?hash={digest.upper()}"


def _definitions() -> Json:
    # Sorted: the hash must be the same in every replica.
    bodies = {_definition(each.body): schema(each.body) for each in ENDPOINTS if each.body is not None}
    return {**bodies, _STATUS: _STATUS_SCHEMA}


def _definition(kind: type[Any]) -> str:
    return f"io.hyperlet.subresources.{kind.__name__}"


def _identifier(endpoint: Endpoint, version: str) -> str:
    words = f"{endpoint.method.lower()}-{endpoint.name}-{'-'.join(endpoint.parameters)}".replace("/", "-").strip("-")
    return version + "".join(word.capitalize() for word in words.split("-"))


def _parameters(endpoint: Endpoint) -> list[str]:
    return ["namespace", *(["name", *endpoint.parameters] if endpoint.subresource else [])]


def _about(endpoint: Endpoint, version: str) -> Json:
    return {
        "operationId": _identifier(endpoint, version),
        "description": endpoint.doc,
        "tags": [f"{GROUP}_{version}"],
    }


def _operation2(endpoint: Endpoint, version: str) -> Json:
    parameters: list[Json] = [
        {"name": each, "in": "path", "required": True, "type": "string", "description": _WORDS[each]}
        for each in _parameters(endpoint)
    ]
    parameters += [{"name": each, "in": "query", "type": "boolean"} for each in endpoint.query]
    if endpoint.body is not None:
        reference = {"$ref": f"#/definitions/{_definition(endpoint.body)}"}
        required = _is_required(endpoint.body)
        parameters.append({"name": "body", "in": "body", "required": required, "schema": reference})
    return {
        **_about(endpoint, version),
        "consumes": [_JSON],
        "produces": sorted({endpoint.media or _JSON, _JSON}),
        "parameters": parameters,
        "responses": _responses2(endpoint),
    }


def _operation3(endpoint: Endpoint, version: str) -> Json:
    parameters: list[Json] = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}, "description": _WORDS[each]}
        for each in _parameters(endpoint)
    ]
    parameters += [{"name": each, "in": "query", "schema": {"type": "boolean"}} for each in endpoint.query]
    found = {**_about(endpoint, version), "parameters": parameters, "responses": _responses3(endpoint)}
    if endpoint.body is not None:
        reference = {"$ref": f"#/components/schemas/{_definition(endpoint.body)}"}
        content = {_JSON: {"schema": reference}}
        found["requestBody"] = {"required": _is_required(endpoint.body), "content": content}
    return found


def _is_required(body: type[Any]) -> bool:
    """Whether a body is required: not if all options are optional."""
    return bool(schema(body).get("required"))


def _success(endpoint: Endpoint) -> tuple[str, str]:
    """Status code and description of the successful response."""
    words = {101: "Switching Protocols", 200: "OK", 202: "Accepted"}[endpoint.success]
    return str(endpoint.success), words


def _responses2(endpoint: Endpoint) -> Json:
    code, words = _success(endpoint)
    own: Json = {"description": words}
    if endpoint.media:
        own["schema"] = {"type": "object" if endpoint.media == _JSON else "file"}
    refusal = {"$ref": f"#/definitions/{_STATUS}"}
    return {code: own, **{each: {"description": why, "schema": refusal} for each, why in _REFUSALS.items()}}


def _responses3(endpoint: Endpoint) -> Json:
    code, words = _success(endpoint)
    own: Json = {"description": words}
    if endpoint.media:
        kind = {"type": "object"} if endpoint.media == _JSON else {"type": "string", "format": "binary"}
        own["content"] = {endpoint.media: {"schema": kind}}
    refusal = {_JSON: {"schema": {"$ref": f"#/components/schemas/{_STATUS}"}}}
    return {code: own, **{each: {"description": why, "content": refusal} for each, why in _REFUSALS.items()}}
