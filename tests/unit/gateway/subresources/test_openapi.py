"""The aggregated API, asked for all that its own OpenAPI documents let one ask for: schemathesis reads them as they are
served, and sends what they allow and what they forbid over TLS, as the front proxy."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from schemathesis import Case, CheckContext, GenerationMode, Response
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.names import SUBRESOURCE_GROUP as GROUP
from gateway.subresources.endpoints import ENDPOINTS, VERSIONS, Endpoint
from kit.duplex import TAKEN
from protos import launcher_pb2 as pb
from tests.unit.gateway.lab import Node, World, vm, vmi, world

V1, OLD = VERSIONS
DOCUMENTS = {V1: f"/openapi/v3/apis/{GROUP}/{V1}", OLD: "/openapi/v2"}
"""Of each version the document to read; the one of OpenAPI 2 has both versions."""
EXAMPLES = {V1: 12, OLD: 3}
"""Requests to each operation. The versions share their code, so the second gets what tells that it is reached."""
OURS = {"namespace": "default", "name": "web"}
"""Existing objects: requests for others only reach 400 and 404."""
OPEN = {**OURS, "port": "80", "protocol": "tcp"}
FORESEEN = (501, 503)
"""Of the codes that speak of a server's fault. The documents have 502 and 504 too, but here all answer at once."""
INSIDES = (b"Traceback", b".py", b"site-packages", b"object at 0x")

load_all_checks()


class OwnTrust(HTTPAdapter):
    """A transport with its own TLS context. The gateway's certificate has the Service name, not an address."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, assert_hostname=False, **more)


@dataclass
class Bench:
    """A gateway running in a thread, and the front proxy's session with it."""

    loop: asyncio.AbstractEventLoop
    world: World
    session: requests.Session
    schemas: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.world.port}"

    def schema(self, version: str) -> Any:
        """The schemathesis schema of an API version."""
        if version not in self.schemas:
            answer = self.session.get(self.url + DOCUMENTS[version], timeout=30)
            answer.raise_for_status()
            # With a configuration of its own it looks for none in the folders around.
            self.schemas[version] = schemathesis.openapi.from_dict(answer.json(), config=schemathesis.Config())
        return self.schemas[version]

    def reset(self, runs: bool) -> None:
        """Resets the VM to running or stopped before a request."""

        async def put() -> None:
            self.world.api.put("virtualmachines", vm("Manual"))
            self.world.api.put("virtualmachineinstances", vmi(conditions=("AgentConnected",)))
            if not runs:
                self.world.api.remove("virtualmachineinstances", "web")

        asyncio.run_coroutine_threadsafe(put(), self.loop).result(30)


async def screen(_: Node, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    """A screen that speaks as much RFB as a gateway needs that wakes it: a silent one would be waited for."""
    await anext(aiter(requests))
    await context.send_initial_metadata(TAKEN)
    for answer in (b"RFB 003.008\n", b"\x01\x01", bytes(4), bytes(24)):
        yield pb.Chunk(data=answer)
    async for _message in requests:
        pass


async def serve(folder: Path, ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, World]]) -> None:
    """Runs a gateway until the event."""
    stop = asyncio.Event()
    try:
        async with world(folder) as made:
            ready.set_result((asyncio.get_running_loop(), stop, made))
            await stop.wait()
    except BaseException as error:
        if ready.done():
            raise
        ready.set_exception(error)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The client blocks, so the gateway has a loop in another thread; there is one for all of these tests."""
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, World]] = Future()
    folder = tmp_path_factory.mktemp("gateway")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "Vnc", screen)
        thread = threading.Thread(target=lambda: asyncio.run(serve(folder, ready)))
        thread.start()
        loop, stop, made = ready.result(60)
        try:
            with requests.Session() as session:
                session.mount("https://", OwnTrust(made.pki.context(made.pki.client("front-proxy-client"))))
                session.headers.update({"X-Remote-User": "alice", "X-Remote-Group": "devs"})
                session.trust_env = False
                yield Bench(loop, made, session)
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(60)


def requests_of(operation: Any, endpoint: Endpoint) -> st.SearchStrategy[Case]:
    """What the document allows, of our machine and of any; and what it forbids, where it forbids anything."""
    wherever = [OPEN, {}, *([OURS] if endpoint.parameters else [])]
    kinds = [operation.as_strategy(generation_mode=GenerationMode.POSITIVE, path_parameters=each) for each in wherever]
    if endpoint.body is not None or endpoint.query:
        kinds.append(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE, path_parameters=OPEN))
    return st.one_of(kinds)


# ---- checks of every response ---------------------------------------------------------------------------------------


def no_fault_but_a_foreseen_one(_: CheckContext, response: Response, case: Case) -> None:
    assert response.status_code < 500 or response.status_code in FORESEEN, (response.status_code, response.content)


def nothing_of_our_insides(_: CheckContext, response: Response, case: Case) -> None:
    assert not [each for each in INSIDES if each in response.content], response.content


def declared_media(ctx: CheckContext, response: Response, case: Case) -> None:
    """As schemathesis', which lets anything pass of whose media type the document says nothing; but an answer without
    a body has none, which OpenAPI 2 cannot say."""
    if response.content:
        assert case.operation.schema.get_content_types(case.operation, response), response.status_code
        content_type_conformance(ctx, response, case)


CHECKS: list[Any] = [
    no_fault_but_a_foreseen_one,
    nothing_of_our_insides,
    status_code_conformance,
    declared_media,
    response_schema_conformance,
]


@pytest.mark.parametrize("version", VERSIONS)
def test_openapi_document_is_valid(bench: Bench, version: str) -> None:
    schema = bench.schema(version)
    schema.validate()
    named = {(endpoint.path(version), endpoint.method.lower()) for endpoint in ENDPOINTS}
    assert {(path, method) for path, found in schema.raw_schema["paths"].items() for method in found} >= named


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: "-".join((each.method, each.name, *each.parameters)))
def test_every_response_is_declared(bench: Bench, endpoint: Endpoint, version: str) -> None:
    operation = bench.schema(version)[endpoint.path(version)][endpoint.method]

    @settings(
        max_examples=EXAMPLES[version],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(runs=st.booleans(), case=requests_of(operation, endpoint))
    def asked(runs: bool, case: Case) -> None:
        bench.reset(runs)
        case.call_and_validate(base_url=bench.url, session=bench.session, checks=CHECKS, timeout=30)

    asked()


def test_unauthenticated_responses_are_declared(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.world.api, "may", lambda user, verb, resource: user != "mallory")
    for headers, code in (({"X-Remote-User": "mallory"}, 403), ({"X-Remote-User": ""}, 401)):
        for endpoint in ENDPOINTS:
            operation = bench.schema(V1)[endpoint.path(V1)][endpoint.method]
            case = operation.Case(path_parameters=OPEN)
            answer = case.call_and_validate(
                base_url=bench.url, session=bench.session, headers=headers, checks=CHECKS, timeout=30
            )
            assert answer.status_code == code, endpoint.name
