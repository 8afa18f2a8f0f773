"""What a handler of an endpoint is given: who asks, about what, and the means to answer."""

import asyncio
import re
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from aiohttp import web

from api import names
from api.errors import HyperletError, NotFound
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
"""Bytes of the options in a request."""
ALL = "All"
"""The only value of dryRun."""

T = TypeVar("T")

# RFC 1123 labels and subdomains. What does not match never becomes part of a path that we ask with our own rights.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class Services:
    """What the endpoints work with."""

    kube: Kube
    nodes: HandlerConnections
    streams: WebSocketStreams
    front_proxy: FrontProxy
    authorizer: Authorizer


def check_names(namespace: str, name: str) -> None:
    """Raises StatusError (400) unless these can be a namespace and (if not empty) an object's name."""
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
        """The API server, with the gateway's own rights: use it only for what the user was authorized to."""
        return self.services.kube

    async def vm(self) -> VirtualMachine:
        """The VM of that name. Raises StatusError."""
        try:
            return await self.kube.get(VirtualMachine, self.namespace, self.name)
        except HyperletError as error:
            raise status.from_api_error(error, names.KIND_VM, self.name) from error

    async def vmi(self) -> VirtualMachineInstance:
        """The VMI of that name. Raises StatusError."""
        try:
            return await self.kube.get(VirtualMachineInstance, self.namespace, self.name)
        except HyperletError as error:
            raise status.from_api_error(error, names.KIND_VMI, self.name) from error

    async def vmi_of(self, vm: VirtualMachine) -> VirtualMachineInstance | None:
        """The VM's own VMI, by UID; None when there is none. Raises StatusError."""
        try:
            vmi = await self.kube.get(VirtualMachineInstance, self.namespace, self.name)
        except NotFound:
            return None
        except HyperletError as error:
            raise status.from_api_error(error, names.KIND_VMI, self.name) from error
        owners = vmi.metadata.ownerReferences or ()
        return vmi if any(owner.controller and owner.uid == vm.metadata.uid for owner in owners) else None

    async def options(self, kind: type[T]) -> T:
        """The options in the body; those of an empty body when there is none. Raises StatusError (400, 413)."""
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
        """The request's body. Raises StatusError (413) beyond `limit` bytes, before it is read."""
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
    """Whether the object has the condition, and it is true."""
    conditions = (obj.status.conditions if obj.status else None) or ()
    return any(each.type == kind and each.status == names.TRUE for each in conditions)


def phase_of(vmi: VirtualMachineInstance) -> str:
    """The VMI's phase; empty while there is none."""
    return (vmi.status.phase if vmi.status else None) or names.PHASE_UNSET
