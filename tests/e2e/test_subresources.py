"""The aggregated API: through the API server, with permissions of the standard roles, over WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import aiohttp
import pytest

from kit import connection
from tests.e2e.manifests import cloud_init, idle, tiny, virtual_machine
from tests.e2e.support import SYSTEM, E2eNamespace, Kubectl, VmUnderTest
from tests.waiting import wait_for

T = TypeVar("T")
GROUP = "/apis/subresources.kubevirt.io/v1"
PASSWORD = "s3cret"
SEED = f"#cloud-config\nhostname: streams\npassword: {PASSWORD}\nchpasswd: {{ expire: False }}\n"
ROLES = ("view", "edit", "admin")
PATIENCE = aiohttp.ClientWSTimeout(ws_receive=60, ws_close=10)


class Api:
    """Client of the API server, as the kubeconfig's user or impersonating another."""

    def __init__(self, space: E2eNamespace) -> None:
        self.space = space

    @contextlib.asynccontextmanager
    async def _session(self, user: str) -> AsyncIterator[aiohttp.ClientSession]:
        where = connection.load(str(self.space.kubectl.kubeconfig))
        headers = await where.credentials.headers()
        if user:
            headers |= {"Impersonate-User": user, "Impersonate-Group": "system:authenticated"}
        connector = aiohttp.TCPConnector(ssl=where.tls or True)
        async with aiohttp.ClientSession(where.server, connector=connector, headers=headers) as session:
            yield session

    def path(self, rest: str) -> str:
        return f"{GROUP}/namespaces/{self.space.name}/{rest}"

    def ask(self, method: str, rest: str, *, user: str = "", body: Any = None) -> tuple[int, Any]:
        """Status code and body of a response."""

        async def asked() -> tuple[int, Any]:
            async with (
                self._session(user) as session,
                session.request(method, self.path(rest), json=body) as response,
            ):
                raw = await response.read()
                is_json = response.content_type == "application/json" and raw
                return response.status, json.loads(raw) if is_json else raw

        return asyncio.run(asked())

    @contextlib.asynccontextmanager
    async def stream(self, rest: str, user: str = "") -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket."""
        async with self._session(user) as session:
            protocols = ["plain.kubevirt.io"]
            async with session.ws_connect(self.path(rest), protocols=protocols, timeout=PATIENCE) as socket:
                assert socket.protocol == "plain.kubevirt.io"
                yield socket


@pytest.fixture(scope="module")
def api(space: E2eNamespace) -> Api:
    return Api(space)


@pytest.fixture(scope="module")
def machine(space: E2eNamespace) -> Iterator[VmUnderTest]:
    made = space.apply_vm(virtual_machine("streams", tiny(), cloud_init(SEED)))
    made.until_status("Running").answer()
    yield made
    made.delete()


@pytest.fixture(scope="module")
def users(space: E2eNamespace) -> dict[str, str]:
    """A user for each of Kubernetes' own roles, in this namespace alone."""
    found = {}
    for role in ROLES:
        found[role] = f"{role}-of-{space.name}"
        space.kubectl("create", "rolebinding", f"is-{role}", f"--clusterrole={role}", f"--user={found[role]}")
    return found


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function with a timeout of three minutes."""

    async def told() -> T:
        async with asyncio.timeout(180):
            return await scenario()

    return asyncio.run(told())


async def until(socket: aiohttp.ClientWebSocketResponse, text: bytes, seen: bytes = b"") -> bytes:
    """Receive until the text is in the received data; returns all of it."""
    while text not in seen:
        message = await socket.receive()
        assert message.type is aiohttp.WSMsgType.BINARY, (message, seen[-300:])
        seen += message.data
    return seen


# ---- discovery -----------------------------------------------------------------------------------------------


def test_api_server_serves_subresources_group(kubectl: Kubectl) -> None:
    for version in ("v1", "v1alpha3"):
        service = kubectl.get("apiservice", f"{version}.subresources.kubevirt.io")
        assert service is not None
        assert {"type": "Available", "status": "True"}.items() <= service["status"]["conditions"][0].items()
        found = json.loads(kubectl("get", "--raw", f"/apis/subresources.kubevirt.io/{version}"))
        assert {"virtualmachines/start", "virtualmachineinstances/console"} <= {r["name"] for r in found["resources"]}
    assert "subresources.kubevirt.io/v1\n" in kubectl("api-versions")
    assert json.loads(kubectl("get", "--raw", f"{GROUP}/version"))["gitVersion"].startswith("v")
    assert json.loads(kubectl("get", "--raw", f"{GROUP}/healthz"))["apiserver"]["connectivity"] == "ok"


def test_api_server_openapi_contains_subresources(kubectl: Kubectl) -> None:
    def merged() -> bool:
        paths = json.loads(kubectl("get", "--raw", "/openapi/v2"))["paths"]
        return f"{GROUP}/namespaces/{{namespace}}/virtualmachines/{{name}}/start" in paths

    wait_for(merged, "the API server has merged the OpenAPI document")
    # kubectl parses all of it before it validates anything.
    assert "spec" in kubectl("explain", "vm")


# ---- permissions -----------------------------------------------------------------------------------------------------

MATRIX = [
    ("GET", "virtualmachineinstances/streams/console", {"edit", "admin"}),
    ("GET", "virtualmachineinstances/streams/vnc", {"edit", "admin"}),
    ("GET", "virtualmachineinstances/streams/vnc/screenshot", {"admin"}),
    ("GET", "virtualmachineinstances/streams/portforward/80", {"edit", "admin"}),
    ("GET", "virtualmachines/streams/expand-spec", {"view", "edit", "admin"}),
    ("PUT", "virtualmachineinstances/streams/pause", {"edit", "admin"}),
    ("PUT", "virtualmachines/streams/restart", {"edit", "admin"}),
    ("PUT", "virtualmachines/streams/migrate", set[str]()),
]


@pytest.mark.parametrize(("method", "path", "allowed"), MATRIX, ids=[path for _, path, _ in MATRIX])
def test_role_grants_expected_subresources(
    machine: VmUnderTest, api: Api, users: dict[str, str], method: str, path: str, allowed: set[str]
) -> None:
    for role in ROLES:
        # No effect: a stream request without upgrade is a 400, and the verbs are dry runs.
        code, body = api.ask(method, path, user=users[role], body={"dryRun": ["All"]} if method == "PUT" else None)
        assert (code != 403) == (role in allowed), (role, code, body)
        if code == 403:
            assert body["reason"] == "Forbidden"
    code, _ = api.ask(method, path, user="nobody")
    assert code == 403


def test_role_grants_nothing_in_other_namespace(machine: VmUnderTest, api: Api, users: dict[str, str]) -> None:
    elsewhere = Api(E2eNamespace(machine.kubectl.in_namespace("default")))
    assert elsewhere.ask("GET", "virtualmachines/streams/expand-spec", user=users["admin"])[0] == 403


def test_direct_gateway_request_with_forged_user_headers_is_unauthenticated(machine: VmUnderTest) -> None:
    """A pod calls the gateway directly, with headers of an administrator."""
    script = """
import http.client, json, ssl, sys
context = ssl._create_unverified_context()
found = []
for path in sys.argv[2:]:
    client = http.client.HTTPSConnection(sys.argv[1], 443, context=context, timeout=10)
    client.request("GET", path, headers={"X-Remote-User": "system:admin", "X-Remote-Group": "system:masters"})
    found.append(client.getresponse().status)
print(json.dumps(found))
"""
    space = machine.space
    pod = space.python_pod("stranger")
    rest = f"{GROUP}/namespaces/{space.name}/virtualmachineinstances/streams"
    address = f"hyperlet-gateway.{SYSTEM}.svc"
    service = space.kubectl.in_namespace(SYSTEM).get("service", "hyperlet-gateway")
    assert service is not None, address
    paths = (f"{rest}/vnc/screenshot", f"{rest}/console", f"{rest}/guestosinfo")
    said = space.kubectl("exec", pod, "--", "python3", "-c", script, service["spec"]["clusterIP"], *paths)
    assert json.loads(said) == [401, 401, 401]


# ---- streams --------------------------------------------------------------------------------------------------------


def test_console_login_over_websocket(machine: VmUnderTest, api: Api, users: dict[str, str]) -> None:
    async def scenario() -> None:
        async with api.stream("virtualmachineinstances/streams/console", users["edit"]) as console:
            await console.send_bytes(b"\r")
            await until(console, b"login:")
            await console.send_bytes(b"tiny\r")
            await until(console, b"assword:")
            await console.send_bytes(PASSWORD.encode() + b"\r")
            await until(console, b"$ ")
            await console.send_bytes(b"echo $((6*7))-is-it\r")
            await until(console, b"42-is-it")
            await console.send_bytes(b"exit\r")

    run(scenario)


def test_replaced_console_writer_is_notified_and_still_receives_output(machine: VmUnderTest, api: Api) -> None:
    async def scenario() -> None:
        path = "virtualmachineinstances/streams/console"
        async with api.stream(path) as first, api.stream(f"{path}?shared=true") as watcher:
            await first.send_bytes(b"\r")
            await until(first, b"login:")
            async with api.stream(path) as second:
                told = await until(first, b"taken over")
                assert b"[" in told
                await second.send_bytes(b"see-this")
                for each in (first, watcher, second):
                    await until(each, b"see-this")
                await second.send_bytes(b"\x15")

    run(scenario)


async def framebuffer(screen: aiohttp.ClientWebSocketResponse) -> tuple[int, int]:
    """The screen size that a VNC server sends (RFC 6143, 7.1 to 7.3.2)."""
    seen = await until(screen, b"RFB 003.")
    await screen.send_bytes(b"RFB 003.008\n")
    rest = seen[12:]

    async def take(count: int) -> bytes:
        nonlocal rest
        while len(rest) < count:
            message = await screen.receive()
            assert message.type is aiohttp.WSMsgType.BINARY, message
            rest += message.data
        taken, rest = rest[:count], rest[count:]
        return taken

    kinds = await take((await take(1))[0])
    assert 1 in kinds
    await screen.send_bytes(b"\x01")
    assert await take(4) == bytes(4)
    await screen.send_bytes(b"\x01")
    width, height, *_ = struct.unpack(">HH16sI", await take(24))
    return width, height


def test_two_vnc_streams_share_screen(machine: VmUnderTest, api: Api) -> None:
    async def scenario() -> None:
        path = "virtualmachineinstances/streams/vnc"
        async with api.stream(path) as first, api.stream(path) as second:
            sizes = [await framebuffer(first), await framebuffer(second)]
            assert sizes[0] == sizes[1]
            assert sizes[0][0] >= 640
            # The first stream is still open: it gets a response to an update request.
            await first.send_bytes(struct.pack(">BBHHHH", 3, 0, 0, 0, 8, 8))
            message = await first.receive()
            assert message.type is aiohttp.WSMsgType.BINARY

    run(scenario)


def test_screenshot_is_png(machine: VmUnderTest, api: Api, users: dict[str, str]) -> None:
    for query in ("", "?moveCursor=true"):
        path = f"virtualmachineinstances/streams/vnc/screenshot{query}"
        code, png = api.ask("GET", path, user=users["admin"])
        assert code == 200, png
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", png[16:24])
        assert width >= 640 and height >= 400
        assert len(png) > 500


def test_port_forward_stream_reaches_guest_web_server(machine: VmUnderTest, api: Api, users: dict[str, str]) -> None:
    async def scenario() -> bytes:
        for kind in ("virtualmachines", "virtualmachineinstances"):
            seen = b""
            async with api.stream(f"{kind}/streams/portforward/80", users["edit"]) as port:
                await port.send_bytes(b"GET / HTTP/1.0\r\n\r\n")
                async for message in port:
                    if message.type is not aiohttp.WSMsgType.BINARY:
                        break
                    seen += message.data
            assert b'"hostname": "streams"' in seen or b'"hostname":"streams"' in seen, seen[-400:]
        return seen

    run(scenario)


def test_impossible_stream_is_refused_before_upgrade(machine: VmUnderTest, api: Api) -> None:
    async def scenario() -> None:
        for path, code in (
            ("virtualmachineinstances/nobody/console", 404),
            ("virtualmachineinstances/streams/portforward/81", 502),
            ("virtualmachineinstances/streams/portforward/99999", 400),
            ("virtualmachineinstances/streams/usbredir", 501),
        ):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                async with api.stream(path):
                    pass
            assert refusal.value.status == code, path

    run(scenario)


# ---- verbs ----------------------------------------------------------------------------------------------------------


def test_pause_and_unpause_keep_guest_boot(machine: VmUnderTest, api: Api, users: dict[str, str]) -> None:
    who, path = users["edit"], "virtualmachineinstances/streams"
    before = machine.answer()["bootId"]
    assert api.ask("PUT", f"{path}/pause", user=who, body={})[0] == 200
    machine.until_status("Paused")
    code, body = api.ask("PUT", f"{path}/pause", user=who, body={})
    assert (code, "already paused" in body["message"]) == (409, True)
    assert api.ask("PUT", f"{path}/unpause", user=who, body={})[0] == 200
    machine.until_status("Running")
    assert machine.answer()["bootId"] == before


def test_start_restart_and_stop_verbs_change_vm_state(space: E2eNamespace, api: Api) -> None:
    machine = space.apply_vm(idle("verbs", run="Manual"))
    path = "virtualmachines/verbs"
    code, body = api.ask("PUT", f"{path}/stop", body={})
    assert (code, body["reason"], "VM is not running" in body["message"]) == (409, "Conflict", True)
    assert api.ask("PUT", f"{path}/start", body={"dryRun": ["All"]})[0] == 202
    assert machine.vmi() is None
    assert api.ask("PUT", f"{path}/start", body={"paused": True})[0] == 202
    machine.until_status("Paused")
    assert api.ask("PUT", "virtualmachineinstances/verbs/unpause", body={})[0] == 200
    machine.until_status("Running")
    assert "already running" in api.ask("PUT", f"{path}/start", body={})[1]["message"]
    first = (machine.vmi() or {})["metadata"]["uid"]
    assert api.ask("PUT", f"{path}/restart", body={"gracePeriodSeconds": 0})[0] == 202
    again = wait_for(
        lambda: (found := machine.vmi()) and found["metadata"]["uid"] != first, "another instance runs", seconds=90
    )
    assert again
    machine.until_status("Running")
    assert (machine.vm() or {})["spec"]["runStrategy"] == "Manual"
    assert api.ask("PUT", f"{path}/stop", body={"gracePeriod": 0})[0] == 202
    machine.until_stopped()
    machine.delete()


def test_halted_vm_started_paused_gets_run_strategy_always(space: E2eNamespace, api: Api) -> None:
    machine = space.apply_vm(idle("waits", run="Halted"))
    assert api.ask("PUT", "virtualmachines/waits/start", body={"paused": True})[0] == 202
    machine.until_status("Paused")
    vm = machine.vm() or {}
    assert vm["spec"]["runStrategy"] == "Always"
    assert "startStrategy" not in vm["spec"]["template"]["spec"]
    assert "stateChangeRequests" not in vm["status"]
    assert api.ask("PUT", "virtualmachines/waits/stop", body={"gracePeriod": 0})[0] == 202
    machine.until_stopped()
    machine.delete()


# ---- the gateway goes -----------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_gateway_restart_closes_consoles_with_going_away_and_guest_continues_running(
    machine: VmUnderTest, api: Api
) -> None:
    """Both replicas are replaced while consoles are open: each is closed with a reason and can be reopened."""
    before = machine.answer()["bootId"]
    system = machine.kubectl.in_namespace(SYSTEM)
    path = "virtualmachineinstances/streams/console"

    async def told(socket: aiohttp.ClientWebSocketResponse) -> aiohttp.WSMessage:
        while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
            pass
        return message

    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            sockets = [
                await stack.enter_async_context(api.stream(path + query)) for query in ("", "?shared=true", "?shared=1")
            ]
            await sockets[0].send_bytes(b"\r")
            for socket in sockets:
                await until(socket, b"login:")
            system("rollout", "restart", "deployment/hyperlet-gateway")
            for message in [await told(socket) for socket in sockets]:
                assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001), message
                assert "gateway is shutting down" in message.extra
        async with api.stream(path) as again:
            await again.send_bytes(b"\r")
            await until(again, b"login:")

    run(scenario)
    system("rollout", "status", "deployment/hyperlet-gateway", "--timeout=120s")
    assert machine.answer()["bootId"] == before
    assert machine.status() == "Running"
