"""The request passed to endpoint handlers: user, object and services."""

import asyncio
import re
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from aiohttp import web

from api import conditions, names
from api.errors import HyperletError, NotFound
from api.k8s import owners
from api.kubevirt.vm import VirtualMachine
from api.kubevirt.vmi import VirtualMachineInstance
from gateway.handler_connections import HandlerConnections
from gateway.http import status
from gateway.http.authentication import FrontProxy, User
from gateway.http.authorization import Authorizer
from gateway.http.request_bodies import BODY_SECONDS
from gateway.http.websockets import WebSocketStreams
from kit.kube import Kube

BODY_LIMIT = 64 << 10
"""Maximum bytes of the options in a request."""
ALL = "All"
"""The only supported value of dryRun."""

T = TypeVar("T")

# RFC 1123 labels and subdomains. Only matching names are used in API paths, which are requested with the gateway's
# permissions.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class Services:
    """Services used by the endpoints."""

    kube: Kube
    nodes: HandlerConnections
    streams: WebSocketStreams
    front_proxy: FrontProxy
    authorizer: Authorizer


def check_names(namespace: str, name: str) -> None:
    """Raises StatusError (400) unless `namespace` and `name` (if not empty) are valid."""
    if not _LABEL.fullmatch(namespace):
        raise status.bad_request(f"namespace {namespace[:80]!r} is not a DNS label: lower case letters, digits and '-'")
    if name and (len(name) > 253 or not _SUBDOMAIN.fullmatch(name)):
        raise status.bad_request(f"name {name[:80]!r} is not a DNS name: lower case letters, digits, '-' and '.'")


@dataclass(frozen=True, slots=True)
class SubresourceRequest:
    """One authorized request."""

    request: web.Request
    services: Services
    user: User
    namespace: str
    name: str

    @property
    def kube(self) -> Kube:
        """A client with the gateway's permissions: only for operations that the user was authorized for."""
        return self.services.kube

    async def vm(self) -> VirtualMachine:
        """Gets the VM. Raises StatusError."""
        try:
            return await self.kube.get(VirtualMachine, self.namespace, self.name)
        except HyperletError as error:
            raise status.from_api_error(error, names.KIND_VM, self.name) from error

    async def vmi(self) -> VirtualMachineInstance:
        """Gets the VMI. Raises StatusError."""
        try:
            return await self.kube.get(VirtualMachineInstance, self.namespace, self.name)
        except HyperletError as error:
            raise status.from_api_error(error, names.KIND_VMI, self.name) from error

    async def vmi_of(self, vm: VirtualMachine) -> VirtualMachineInstance | None:
        """Gets the VMI owned by the VM (by UID); None when there is none. Raises StatusError."""
        try:
            vmi = await self.kube.get(VirtualMachineInstance, self.namespace, self.name)
        except NotFound:
            return None
        except HyperletError as error:
            raise status.from_api_error(error, names.KIND_VMI, self.name) from error
        return vmi if owners.controls(vm.metadata, vmi.metadata) else None

    async def options(self, kind: type[T]) -> T:
        """Decodes the options in the body; defaults for an empty body. Raises StatusError (400, 413)."""
        body = await self.body(BODY_LIMIT)
        try:
            options = msgspec.json.decode(body, type=kind) if body.strip() else kind()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise status.bad_request(f"Can not unmarshal Request body to struct, error: {error}") from error
        dry_run = getattr(options, "dryRun", None)
        if dry_run and any(each != ALL for each in dry_run):
            raise status.bad_request(f"dryRun: the only supported value is {ALL!r}, not {dry_run[0][:80]!r}")
        return options

    async def body(self, limit: int) -> bytes:
        """Reads the body. Raises StatusError (413) as soon as it exceeds `limit` bytes."""
        kept = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in self.request.content.iter_chunked(16 << 10):
                    kept += chunk
                    if len(kept) > limit:
                        message = f"the request body exceeds {limit} bytes"
                        raise status.StatusError(413, "RequestEntityTooLarge", message)
        except TimeoutError:
            raise status.StatusError(
                408, "Timeout", f"the request body was not received within {BODY_SECONDS:g} s"
            ) from None
        return bytes(kept)


def has_condition(obj: VirtualMachine | VirtualMachineInstance, kind: str) -> bool:
    """Whether the object has the condition with status True."""
    return conditions.holds(obj.status.conditions if obj.status else None, kind)
