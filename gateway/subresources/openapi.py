"""The OpenAPI documents of the aggregated API: version 2 for the whole of it, version 3 for each API version."""

import hashlib
from typing import Any

import msgspec

from api import names
from api.version import VERSION
from gateway.subresources.endpoints import ENDPOINTS, VERSIONS, Endpoint
from gateway.subresources.options import schema

Json = dict[str, Any]
GROUP = names.SUBRESOURCE_GROUP
_WORDS = {
    "namespace": "Namespace of the object.",
    "name": "Name of the object.",
    "port": "Port in the guest, from 1 to 65535.",
    "protocol": "tcp or udp.",
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
    """The whole API as OpenAPI 2."""
    paths: Json = {}
    for version in VERSIONS:
        for endpoint in ENDPOINTS:
            paths.setdefault(endpoint.path(version), {})[endpoint.method.lower()] = _operation2(endpoint, version)
    return {"swagger": "2.0", "info": _TITLE, "paths": paths, "definitions": _definitions()}


def version3(version: str) -> Json:
    """One version of the API as OpenAPI 3."""
    paths: Json = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path(version), {})[endpoint.method.lower()] = _operation3(endpoint, version)
    return {"openapi": "3.0.0", "info": _TITLE, "paths": paths, "components": {"schemas": _definitions()}}


def index3() -> Json:
    """Where the OpenAPI 3 documents are; the hash tells a client whether it has one already."""
    return {"paths": {f"apis/{GROUP}/{each}": {"serverRelativeURL": _address(each)} for each in VERSIONS}}


def _address(version: str) -> str:
    digest = hashlib.sha512(msgspec.json.encode(version3(version))).hexdigest()[:64]
    return f"/openapi/v3/apis/{GROUP}/{version}?hash={digest.upper()}"


def _definitions() -> Json:
    # In one order: the hash of the document must be the same in every replica.
    return {_definition(each.body): schema(each.body) for each in ENDPOINTS if each.body is not None}


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
        parameters.append({"name": "body", "in": "body", "required": False, "schema": reference})
    return {
        **_about(endpoint, version),
        "consumes": ["application/json"],
        "produces": [endpoint.media],
        "parameters": parameters,
        "responses": _responses(endpoint),
    }


def _operation3(endpoint: Endpoint, version: str) -> Json:
    parameters: list[Json] = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}, "description": _WORDS[each]}
        for each in _parameters(endpoint)
    ]
    parameters += [{"name": each, "in": "query", "schema": {"type": "boolean"}} for each in endpoint.query]
    found = {**_about(endpoint, version), "parameters": parameters, "responses": _responses(endpoint)}
    if endpoint.body is not None:
        reference = {"$ref": f"#/components/schemas/{_definition(endpoint.body)}"}
        found["requestBody"] = {"required": False, "content": {"application/json": {"schema": reference}}}
    return found


def _responses(endpoint: Endpoint) -> Json:
    success = {101: "Switching Protocols", 200: "OK", 202: "Accepted"}[endpoint.success]
    words = {str(endpoint.success): success, **_REFUSALS}
    return {code: {"description": text} for code, text in words.items()}
