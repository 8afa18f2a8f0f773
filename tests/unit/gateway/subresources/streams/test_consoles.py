"""Console, VNC and port-forward over real WebSockets: data, refusals, limits and close codes."""

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import msgspec
import pytest

from api.k8s.objects import Pod
from api.kubevirt.vmi import VirtualMachineInstance
from gateway.http import websockets
from gateway.subresources.streams import consoles, portforward
from gateway.subresources.streams.portforward import belongs
from kit.duplex import TAKEN
from protos import launcher_pb2 as pb
from tests.fakes.apiserver import Json
from tests.unit.gateway.lab import NODE, POD_UID, ROOT, VM_UID, VMI_UID, World, serve_node, vm, vmi, world
from tests.waiting import until

CONSOLE = "virtualmachineinstances/web/console"
VNC = "virtualmachineinstances/web/vnc"
STREAMS = [CONSOLE, VNC, "virtualmachineinstances/web/portforward/80", "virtualmachines/web/portforward/53/udp"]


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        made.api.put("virtualmachines", vm())
        made.api.put("virtualmachineinstances", vmi())
        yield made


async def refusal(gate: World, path: str) -> tuple[int, Json]:
    """The response to a refused handshake."""
    headers = {
        "X-Remote-User": "alice",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
    }
    async with gate.proxy.get(f"{ROOT}/{path}", headers=headers) as response:
        return response.status, await response.json()


# ---- the console ----------------------------------------------------------------------------------------------------


async def test_console_bytes_are_unchanged_in_both_directions(gate: World) -> None:
    gate.node.prints = [pb.ConsoleOutput(data=b"login: \x1b[0m\xff")]
    async with gate.stream(CONSOLE) as socket:
        assert socket.protocol == "plain.kubevirt.io"
        assert await socket.receive_bytes() == b"login: \x1b[0m\xff"
        await socket.send_bytes(b"\x00root\xfe\r")
        assert await socket.receive_bytes() == b"\x00root\xfe\r"
        await socket.send_str("é")
        assert await socket.receive_bytes() == "é".encode()
    (first,) = gate.node.firsts
    assert (first.vmi.namespace, first.vmi.name, first.vmi.uid) == ("default", "web", VMI_UID)
    await until(lambda: gate.node.open == 0)


@pytest.mark.parametrize(
    ("query", "watch", "takeover"),
    [("", False, True), ("?shared=true", True, False), ("?shared=false&takeover=false", False, False)],
)
async def test_console_mode_and_user_are_sent_to_node(gate: World, query: str, watch: bool, takeover: bool) -> None:
    async with gate.stream(CONSOLE + query):
        (first,) = gate.node.firsts
        assert (first.input.watch, first.input.takeover, first.input.who) == (watch, takeover, "alice")


async def test_user_name_has_no_control_characters(gate: World) -> None:
    async with gate.stream(CONSOLE, user="eve%1b[2J" + "x" * 400):
        (first,) = gate.node.firsts
        assert len(first.input.who.encode()) <= consoles.WHO_LIMIT
    assert consoles.terminal_name("eve\x1b[2J\r\n\u202eyou") == "eve [2J   you"


async def test_takeover_notice_is_a_separate_line(gate: World) -> None:
    gate.node.prints = [pb.ConsoleOutput(notice="bob has taken over the console"), pb.ConsoleOutput(data=b"$ ")]
    async with gate.stream(CONSOLE) as socket:
        assert await socket.receive_bytes() == b"\r\n[bob has taken over the console]\r\n"
        assert await socket.receive_bytes() == b"$ "


async def test_guest_end_closes_with_1000_and_reason(gate: World) -> None:
    async with gate.stream(CONSOLE) as socket:
        gate.node.end.set()
        message = await socket.receive()
        assert (message.type, message.data, message.extra) == (
            aiohttp.WSMsgType.CLOSE,
            1000,
            "the guest closed the stream",
        )


async def test_node_error_closes_with_1011_and_reason(gate: World) -> None:
    async with gate.stream(CONSOLE) as socket:
        gate.node.fails = (grpc.StatusCode.UNAVAILABLE, "the handler stops")
        gate.node.end.set()
        message = await socket.receive()
        assert message.data == 1011
        assert NODE in message.extra


async def test_client_disconnect_closes_node_stream(gate: World) -> None:
    socket = await gate.stream(CONSOLE)
    assert len(gate.services.streams) == 1
    transport = socket._response.connection.transport
    transport.abort()
    await until(lambda: gate.node.open == 0 and len(gate.services.streams) == 0)


async def test_shutdown_closes_all_streams_with_1001(gate: World) -> None:
    sockets = [await gate.stream(CONSOLE), await gate.stream(CONSOLE + "?shared=true"), await gate.stream(VNC)]
    await sockets[2].receive_bytes()
    closing = asyncio.create_task(gate.services.streams.stop())
    for socket in sockets:
        message = await socket.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
        assert message.extra == "the gateway is shutting down: connect again"
    await closing
    await until(lambda: gate.node.open == 0)
    code, body = await refusal(gate, CONSOLE)
    assert (code, body["reason"]) == (503, "ServiceUnavailable")


async def test_slow_client_applies_backpressure(gate: World) -> None:
    gate.node.flood = 4000  # 250 MiB
    socket = await gate.stream(CONSOLE)
    await until(lambda: gate.node.sent > 0)
    sent = -1
    while sent != gate.node.sent:
        sent = gate.node.sent
        await asyncio.sleep(0.3)
    # Data in flight is bounded by the windows of gRPC, the WebSocket and the loopback sockets.
    assert gate.node.sent * (64 << 10) < 24 << 20
    gate.node.flood = 0
    await socket.close()
    await until(lambda: gate.node.open == 0)


async def test_oversized_message_closes_stream(gate: World) -> None:
    async with gate.stream(CONSOLE) as socket:
        await socket.send_bytes(bytes(websockets.MESSAGE_LIMIT + 1))
        while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
            pass
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
    await until(lambda: gate.node.open == 0)


# ---- refusals before the upgrade ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CONSOLE, VNC])
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, 409),
        (grpc.StatusCode.NOT_FOUND, 404),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (grpc.StatusCode.UNAVAILABLE, 503),
    ],
)
async def test_node_refusal_is_plain_http(gate: World, path: str, status: grpc.StatusCode, code: int) -> None:
    gate.node.fails = (status, "no such stream")
    found, body = await refusal(gate, path)
    assert (found, body["kind"], body["code"]) == (code, "Status", code)
    assert "no such stream" in body["message"]


@pytest.mark.parametrize("path", STREAMS)
async def test_forbidden_is_returned_before_upgrade(gate: World, path: str) -> None:
    gate.api.may = lambda user, verb, resource: False
    code, body = await refusal(gate, path)
    assert (code, body["reason"]) == (403, "Forbidden")


@pytest.mark.parametrize("path", STREAMS)
async def test_stream_without_upgrade_returns_400(gate: World, path: str) -> None:
    code, body = await gate.ask("GET", path)
    assert (code, "WebSocket" in body["message"]) == (400, True)
    assert gate.node.called == {}


@pytest.mark.parametrize(
    ("path", "change", "code", "said"),
    [
        (CONSOLE, {"phase": "Scheduled"}, 400, "VMI is not running"),
        (CONSOLE, {"phase": "Failed"}, 409, "VMI is in failed status"),
        (CONSOLE, {"spec": {"domain": {"devices": {"autoattachSerialConsole": False}}}}, 400, "No serial consoles"),
        (VNC, {"phase": "Succeeded"}, 400, "VMI is not running"),
        (VNC, {"spec": {"domain": {"devices": {"autoattachGraphicsDevice": False}}}}, 400, "No graphics devices"),
        (CONSOLE + "?shared=perhaps", {}, 400, "is not true or false"),
        ("virtualmachineinstances/web/portforward/80", {"conditions": ("Paused",)}, 409, "VMI is paused"),
        ("virtualmachineinstances/web/portforward/80", {"phase": "Scheduled"}, 409, "VMI is not running"),
        ("virtualmachineinstances/web/portforward/0", {}, 400, "port"),
        ("virtualmachineinstances/web/portforward/65536", {}, 400, "port"),
        ("virtualmachineinstances/web/portforward/ssh", {}, 400, "port"),
        ("virtualmachineinstances/web/portforward/80/sctp", {}, 400, "protocol"),
        ("virtualmachineinstances/web/usbredir", {}, 501, "USB redirection"),
        ("virtualmachineinstances/web/vsock", {}, 501, "VSOCK"),
    ],
)
async def test_unavailable_streams_return_status(gate: World, path: str, change: Any, code: int, said: str) -> None:
    gate.api.put("virtualmachineinstances", vmi(**change))
    found, body = await refusal(gate, path)
    assert (found, said in body["message"]) == (code, True), body


async def test_streams_are_limited_in_total_and_per_vm(gate: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websockets, "STREAMS_OF_ONE", 2)
    first, second = await gate.stream(CONSOLE), await gate.stream(VNC)
    code, body = await refusal(gate, CONSOLE)
    assert (code, body["reason"]) == (429, "TooManyRequests")
    await first.close()
    await until(lambda: len(gate.services.streams) == 1)
    monkeypatch.setattr(websockets, "STREAMS", 1)
    assert (await refusal(gate, CONSOLE))[0] == 429
    await second.close()


@pytest.mark.parametrize(("limit", "said"), [("STREAMS_OF_NAMESPACE", "namespace"), ("STREAMS_OF_USER", "you have")])
async def test_streams_are_limited_per_namespace_and_user(
    gate: World, monkeypatch: pytest.MonkeyPatch, limit: str, said: str
) -> None:
    monkeypatch.setattr(websockets, limit, 2)
    both = [await gate.stream(CONSOLE), await gate.stream(VNC)]
    code, body = await refusal(gate, CONSOLE)
    assert (code, body["reason"]) == (429, "TooManyRequests") and said in body["message"]
    for each in both:
        await each.close()


# ---- VNC ------------------------------------------------------------------------------------------------------------


async def test_each_vnc_viewer_has_its_own_connection(gate: World) -> None:
    viewers = [await gate.stream(VNC + "?preserveSession=true") for _ in range(3)]
    for number, viewer in enumerate(viewers):
        assert await viewer.receive_bytes() == b"RFB 003.008\n"
        await viewer.send_bytes(bytes([number]))
        assert await viewer.receive_bytes() == bytes([number])
    assert gate.node.called["Vnc"] == 3
    for viewer in viewers:
        await viewer.close()


async def test_screenshot_returns_png_only(gate: World) -> None:
    assert await gate.ask("GET", f"{VNC}/screenshot") == (200, gate.node.png)
    gate.node.png = b"<script>"
    code, body = await gate.ask("GET", f"{VNC}/screenshot")
    assert (code, "script" in body["message"]) == (502, False)


async def test_a_screenshot_can_wake_the_screen_first(gate: World, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[bytes] = []

    async def vnc(requests: Any, context: Any) -> AsyncIterator[Any]:
        await anext(aiter(requests))
        await context.send_initial_metadata(TAKEN)
        reply = [b"RFB 003.008\n", b"\x01\x01", bytes(4), struct.pack(">HH16sI", 640, 480, b"", 4) + b"tiny"]
        for number, answer in enumerate(reply):
            yield pb.Chunk(data=answer)
            if number < len(reply) - 1:
                got.append((await anext(aiter(requests))).chunk.data)
        async for message in requests:
            got.append(message.chunk.data)

    monkeypatch.setattr(gate.node, "Vnc", vnc)
    server, port = await serve_node(gate.node, gate.pki.node(NODE))
    gate.services.nodes._port = port
    assert await gate.ask("GET", f"{VNC}/screenshot?moveCursor=true") == (200, gate.node.png)
    assert got[:3] == [b"RFB 003.008\n", b"\x01", b"\x01"]
    assert got[3:] == [b"\x05\x00\x00\x00\x00\x00", b"\x05\x00\x00\x01\x00\x01"]
    await server.stop(None)


# ---- port-forward ---------------------------------------------------------------------------------------------------


def launcher_pod(**change: Any) -> Json:
    owner = {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "web", "uid": VMI_UID}
    whole: Json = {
        "metadata": {
            "name": "virt-launcher-web-x",
            "namespace": "default",
            "uid": POD_UID,
            "labels": {"kubevirt.io/created-by": VMI_UID},
            "ownerReferences": [{**owner, "controller": True}],
        },
        "spec": {"nodeName": NODE, "containers": []},
        "status": {"phase": "Running", "podIP": "127.0.0.1"},
    }
    for key, value in change.items():
        part = next(part for part in ("metadata", "spec", "status") if key in whole[part])
        whole[part][key] = value
    return whole


async def guest_port(gate: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod's address in the test is loopback, which is otherwise refused."""
    monkeypatch.setattr(portforward, "_is_foreign", lambda address: True)
    gate.api.put("pods", launcher_pod())


@pytest.mark.parametrize("kind", ["virtualmachineinstances", "virtualmachines"])
async def test_tcp_port_forward(gate: World, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data.upper())
        writer.close()

    await guest_port(gate, monkeypatch)
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for path in (f"{kind}/web/portforward/{port}", f"{kind}/web/portforward/{port}/tcp"):
        async with gate.stream(path) as socket:
            await socket.send_bytes(b"hello")
            assert await socket.receive_bytes() == b"HELLO"
    server.close()


async def test_guest_close_closes_port_forward(gate: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def bye(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.close()

    await guest_port(gate, monkeypatch)
    server = await asyncio.start_server(bye, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with gate.stream(f"virtualmachineinstances/web/portforward/{port}") as socket:
        assert await socket.receive_bytes() == b"bye"
        message = await socket.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1000)
    server.close()


async def test_refused_port_is_reported_before_upgrade(gate: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await guest_port(gate, monkeypatch)
    code, body = await refusal(gate, "virtualmachineinstances/web/portforward/1")
    assert (code, "dialing VM: port 1" in body["message"]) == (502, True)


async def test_udp_datagram_boundaries_are_preserved(gate: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, source: Any) -> None:
            self.transport.sendto(b"%d:" % len(data) + data[:10], source)

    await guest_port(gate, monkeypatch)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    async with gate.stream(f"virtualmachines/web/portforward/{port}/udp") as socket:
        for size in (3, 40000, 1):
            await socket.send_bytes(b"x" * size)
            assert await socket.receive_bytes() == b"%d:" % size + b"x" * min(size, 10)
        await socket.send_bytes(bytes(70000))
        await socket.send_bytes(b"on")
        assert await socket.receive_bytes() == b"2:on"
    transport.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "nonsense", ""])
async def test_non_pod_address_is_not_dialled(gate: World, address: str) -> None:
    gate.api.put("pods", launcher_pod(podIP=address))
    code, _ = await refusal(gate, "virtualmachineinstances/web/portforward/80")
    assert code == 409


@pytest.mark.parametrize(
    "change",
    [
        {"ownerReferences": []},
        {"uid": "another-pod"},
        {"phase": "Succeeded"},
        {
            "ownerReferences": [
                {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "web", "uid": "other"}
            ]
        },
        {
            "ownerReferences": [
                {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "web", "uid": VMI_UID}
            ]
        },
    ],
)
async def test_pod_with_labels_only_is_not_dialled(gate: World, change: Any) -> None:
    gate.api.put("pods", launcher_pod(**change))
    code, body = await refusal(gate, "virtualmachineinstances/web/portforward/80")
    assert (code, body["message"].endswith("VMI is not running")) == (409, True)


async def test_port_forward_to_stopped_vm_returns_409(gate: World) -> None:
    gate.api.remove("virtualmachineinstances", "web")
    code, body = await refusal(gate, "virtualmachines/web/portforward/80")
    assert (code, body["message"].endswith("VMI is not started")) == (409, True)


def test_pod_and_vmi_must_reference_each_other() -> None:
    instance = msgspec.convert(vmi(), VirtualMachineInstance)
    assert belongs(msgspec.convert(launcher_pod(), Pod), instance)
    assert not belongs(msgspec.convert(launcher_pod(uid=VM_UID), Pod), instance)
