"""The node service: authentication, target VM, validation of the launcher's responses."""

import asyncio
import contextlib
import os
import pathlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from api import names
from api.errors import LauncherUnavailable, NotFound
from handler.service.limits import CallLimits
from kit import rpc, tls
from kit.duplex import TAKEN
from protos import launcher_pb2 as pb
from protos import launcher_pb2_grpc, node_pb2, node_pb2_grpc
from tests.fakes import nodelab
from tests.fakes.nodelab import VMI, Authority, Direct, leaf

PNG = b"\x89PNG\r\n\x1a\nrest"


class FakeLauncher(launcher_pb2_grpc.LauncherServicer):
    """Configurable fake launcher: `answer` and `refuse` for verbs, functions for streams."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.refuse: tuple[str, str] | None = None
        self.was_asked = asyncio.Event()
        self.hold = asyncio.Event()
        self.hold.set()
        self.console: Any = echo
        self.vnc: Any = echo
        self.open = 0
        self.changed = asyncio.Condition()

    async def _answer(self, name: str, request: Any, context: Any, reply: Any) -> Any:
        self.asked.append((name, request))
        self.was_asked.set()
        await self.hold.wait()
        if self.refuse:
            await context.abort(grpc.StatusCode[self.refuse[0]], self.refuse[1])
        return self.answers.get(name, reply)

    async def Console(self, requests: Any, context: Any) -> None:
        await self._stream(self.console, requests, context, lambda data: pb.ConsoleOutput(data=data))

    async def Vnc(self, requests: Any, context: Any) -> None:
        await self._stream(self.vnc, requests, context, lambda data: pb.Chunk(data=data))

    async def _stream(self, work: Any, requests: Any, context: Any, wrap: Any) -> None:
        await self._count(1)
        try:
            await work(requests, context, wrap)
        finally:
            await self._count(-1)

    async def _count(self, step: int) -> None:
        async with self.changed:
            self.open += step
            self.changed.notify_all()

    async def until_open(self, number: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: self.open == number)


def _verb(name: str, reply: type) -> Any:
    async def call(self: FakeLauncher, request: Any, context: Any) -> Any:
        return await self._answer(name, request, context, reply())

    return call


for _name, _reply in {
    "Pause": pb.Report,
    "Unpause": pb.Report,
    "Reset": pb.Report,
    "SoftReboot": pb.Report,
    "Freeze": pb.FreezeReply,
    "Unfreeze": pb.FreezeReply,
    "Users": pb.UsersReply,
    "Filesystems": pb.FilesystemsReply,
    "Screenshot": pb.ScreenshotReply,
}.items():
    setattr(FakeLauncher, _name, _verb(_name, _reply))


async def echo(requests: Any, context: Any, wrap: Any) -> None:
    async for request in requests:
        if request.data:
            await context.write(wrap(request.data))


@contextlib.asynccontextmanager
async def launcher() -> AsyncIterator[tuple[FakeLauncher, Any]]:
    fake = FakeLauncher()
    server = grpc.aio.server(options=[("grpc.max_send_message_length", 4 << 20)])
    launcher_pb2_grpc.add_LauncherServicer_to_server(fake, server)
    with tempfile.TemporaryDirectory(prefix="hl-") as folder:
        server.add_insecure_port(f"unix:{folder}/l.sock")
        await server.start()
        with contextlib.ExitStack() as stack:
            fd = os.open(pathlib.Path(folder, "l.sock"), os.O_PATH)
            stack.callback(os.close, fd)
            async with rpc.channel(fd) as channel:
                yield fake, launcher_pb2_grpc.LauncherStub(channel)
        await server.stop(0)


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    yield Authority()


@contextlib.asynccontextmanager
async def lab(authority: Authority, limits: CallLimits | None = None, report: Any = None) -> AsyncIterator[Any]:
    """The gateway's client, the launcher, the service."""
    async with launcher() as (fake, stub):

        def find(namespace: str, name: str, uid: str) -> Any:
            if (namespace, name, uid) != ("ns", "vm", "uid-1"):
                raise NotFound(f"{namespace}/{name} does not run here")
            return Direct(stub, report)

        async with nodelab.node(find, authority, limits) as (service, port), nodelab.gateway(port, authority) as client:
            yield client, fake, service


def code(caught: Any) -> str:
    return str(caught.value.code().name)


CALLS = {
    "Pause": VMI,
    "Unpause": VMI,
    "Reset": VMI,
    "SoftReboot": VMI,
    "Freeze": node_pb2.FreezeVmi(vmi=VMI, unfreeze_seconds=7),
    "Unfreeze": VMI,
    "GuestInfo": VMI,
    "Users": VMI,
    "Filesystems": VMI,
    "Screenshot": VMI,
    "Console": node_pb2.ConsoleInput(vmi=VMI),
    "Vnc": node_pb2.VncInput(vmi=VMI),
}


async def call(stub: Any, name: str, request: Any = None) -> Any:
    """One call of any method; for a stream, its first response."""
    request = CALLS[name] if request is None else request
    if name not in ("Console", "Vnc"):
        return await getattr(stub, name)(request, timeout=20)
    stream = getattr(stub, name)(timeout=20)
    await stream.write(request)
    answer = await stream.read()
    stream.cancel()
    return answer


def test_all_rpc_methods_are_covered() -> None:
    methods = node_pb2.DESCRIPTOR.services_by_name["Node"].methods_by_name
    assert set(methods) == set(CALLS)


# -- authentication


def strangers(authority: Authority) -> dict[str, Any]:
    other = Authority()
    return {
        "nobody": None,
        "another authority's gateway": other.gateway(),
        "a node": leaf(authority.ca, True, dns=("node1.node.hyperlet",), uris=(names.node_uri("node1"),)),
        "this node's server certificate": authority.node(),
        "a gateway by name only": leaf(authority.ca, True, dns=(names.URI_GATEWAY, "gateway")),
        "a gateway and a node": leaf(authority.ca, True, uris=(names.URI_GATEWAY, names.node_uri("node1"))),
        "nearly a gateway": leaf(authority.ca, True, uris=(names.URI_GATEWAY + "/",)),
        "a gateway of last week": leaf(authority.ca, True, uris=(names.URI_GATEWAY,), age=7 * 86400),
    }


HANDSHAKE = {"nobody", "another authority's gateway", "this node's server certificate", "a gateway of last week"}


@pytest.mark.parametrize("who", list(strangers(Authority())))
async def test_clients_other_than_the_gateway_are_denied(authority: Authority, who: str) -> None:
    def find(*_: str) -> Any:
        raise AssertionError("a stranger came as far as a launcher")

    async with nodelab.node(find, authority) as (_service, port):
        identity = strangers(authority)[who]
        async with nodelab.channel(port, identity, authority.ca.certificate) as channel:
            stub = node_pb2_grpc.NodeStub(channel)
            for name in CALLS:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(stub, name)
                assert code(caught) == ("UNAVAILABLE" if who in HANDSHAKE else "PERMISSION_DENIED"), name


async def test_gateway_rejects_another_nodes_certificate(authority: Authority) -> None:
    async with (
        launcher() as (_, stub),
        nodelab.node(lambda *_: Direct(stub), authority) as (_service, port),
        nodelab.channel(port, authority.gateway(), authority.ca.certificate, "node2") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(node_pb2_grpc.NodeStub(channel), "Reset")
        assert code(caught) == "UNAVAILABLE"


# -- about what


@pytest.mark.parametrize("name", CALLS)
async def test_another_uid_or_vmi_is_not_found(authority: Authority, name: str) -> None:
    wrong = [node_pb2.Vmi(namespace="ns", name="vm", uid="uid-2"), node_pb2.Vmi(namespace="o", name="vm", uid="uid-1")]
    async with lab(authority) as (client, fake, _):
        for vmi in [*wrong, node_pb2.Vmi()]:
            kind = type(CALLS[name])
            request = vmi if kind is node_pb2.Vmi else kind(vmi=vmi)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(client, name, request)
            assert code(caught) == ("NOT_FOUND" if vmi.uid else "INVALID_ARGUMENT")
        assert not fake.asked and not fake.open


async def test_verbs_are_forwarded_to_the_launcher(authority: Authority) -> None:
    async with lab(authority) as (client, fake, _):
        fake.answers["Screenshot"] = pb.ScreenshotReply(png=PNG)
        for name in CALLS.keys() - {"GuestInfo", "Console", "Vnc"}:
            await call(client, name)
        assert {name for name, _ in fake.asked} == CALLS.keys() - {"GuestInfo", "Console", "Vnc"}
        assert dict(fake.asked)["Freeze"].unfreeze_seconds == 7


async def test_disconnected_launcher_is_unavailable(authority: Authority) -> None:
    class Silent:
        pod_uid = "pod"

        @property
        def stub(self) -> Any:
            raise LauncherUnavailable("the launcher hangs")

    async with nodelab.node(lambda *_: Silent(), authority) as (_, port), nodelab.gateway(port, authority) as client:
        for name in ("Reset", "Console"):
            with pytest.raises(grpc.aio.AioRpcError, match="the launcher hangs") as caught:
                await call(client, name)
            assert code(caught) == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("FAILED_PRECONDITION", "FAILED_PRECONDITION"),
        ("ALREADY_EXISTS", "ALREADY_EXISTS"),
        ("CANCELLED", "UNAVAILABLE"),
        ("UNAUTHENTICATED", "INTERNAL"),
        ("NOT_FOUND", "INTERNAL"),
        ("PERMISSION_DENIED", "INTERNAL"),
    ],
)
async def test_launcher_status_codes_are_translated(authority: Authority, said: str, heard: str) -> None:
    words = "no agent\x1b[2J\n" + "x" * 3000
    async with lab(authority) as (client, fake, _):
        fake.refuse = (said, words)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(client, "Users")
        details = caught.value.details()
        assert code(caught) == heard and len(details) <= 1024 and details.isprintable() and "no agent" in details


# -- bounds of the launcher's responses


async def test_launcher_responses_are_bounded(authority: Authority) -> None:
    async with lab(authority) as (client, fake, _):
        fake.answers["Users"] = pb.UsersReply(users=[pb.GuestUser(name="a\x1b[31m" + "b" * 300)] * 2000)
        reply = await call(client, "Users")
        assert len(reply.users) == 1000
        assert all(len(user.name) <= 256 and user.name.isprintable() for user in reply.users)
        disks = [pb.GuestDisk(serial="s\n")] * 100
        fake.answers["Filesystems"] = pb.FilesystemsReply(
            filesystems=[pb.GuestFilesystem(mount_point="/\u202e", disks=disks)] * 1100
        )
        found = (await call(client, "Filesystems")).filesystems
        assert len(found) == 1000 and len(found[0].disks) == 64 and found[0].disks[0].serial == "s"
        for picture in (b"", b"GIF89a", PNG + bytes(900 << 10)):
            fake.answers["Screenshot"] = pb.ScreenshotReply(png=picture)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(client, "Screenshot")
            assert code(caught) == "INTERNAL"
        fake.answers["Screenshot"] = pb.ScreenshotReply(png=bytes(2 << 20))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(client, "Screenshot")
        assert code(caught) == "RESOURCE_EXHAUSTED"


async def test_guest_info(authority: Authority) -> None:
    report = pb.Report(agent_connected=True)
    report.guest.hostname = "web\x07"
    report.guest.interfaces.extend([pb.GuestInterface(name="eth0", addresses=["10.0.0.2/24"] * 100)] * 300)
    async with lab(authority, report=lambda: report) as (client, _, _service):
        info = await call(client, "GuestInfo")
        assert info.hostname == "web" and len(info.interfaces) == 256 and len(info.interfaces[0].addresses) == 32
        report.agent_connected = False
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(client, "GuestInfo")
        assert code(caught) == "FAILED_PRECONDITION"


@pytest.mark.parametrize("name", ["Console", "Vnc"])
async def test_oversized_launcher_message_is_an_internal_error(authority: Authority, name: str) -> None:
    async def flood(requests: Any, context: Any, wrap: Any) -> None:
        await context.write(wrap(bytes((64 << 10) + 1)))

    async with lab(authority) as (client, fake, _):
        fake.console = fake.vnc = flood
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(client, name)
        assert code(caught) == "INTERNAL"
        await fake.until_open(0)


async def test_notices_are_sanitized_and_data_is_unchanged(authority: Authority) -> None:
    async def talk(requests: Any, context: Any, wrap: Any) -> None:
        await context.write(pb.ConsoleOutput(data=b"\x1b[2J\x00", notice="bob\x1b[2J" + "x" * 1000))

    async with lab(authority) as (client, fake, _):
        fake.console = talk
        message = await call(client, "Console")
        assert message.data == b"\x1b[2J\x00"
        assert message.notice.startswith("bob [2J") and len(message.notice) == 256


# -- streams


async def test_stream_forwards_data_in_both_directions(authority: Authority) -> None:
    async with lab(authority) as (client, _, _service):
        for name, wrap, first in (
            ("Console", lambda data: node_pb2.ConsoleInput(input=pb.ConsoleInput(data=data)), CALLS["Console"]),
            ("Vnc", lambda data: node_pb2.VncInput(chunk=pb.Chunk(data=data)), CALLS["Vnc"]),
        ):
            stream = getattr(client, name)(timeout=20)
            await stream.write(first)
            for data in (b"\x00\xff\x1b", bytes(64 << 10)):
                await stream.write(wrap(data))
                assert (await stream.read()).data == data
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is grpc.StatusCode.OK


async def test_user_name_is_forwarded_once(authority: Authority) -> None:
    heard: list[pb.ConsoleInput] = []

    async def listen(requests: Any, context: Any, wrap: Any) -> None:
        async for request in requests:
            heard.append(request)
            await context.write(wrap(b"."))

    async with lab(authority) as (client, fake, _):
        fake.console = listen
        stream = client.Console(timeout=20)
        opening = pb.ConsoleInput(who="alice", takeover=True)
        await stream.write(node_pb2.ConsoleInput(vmi=VMI, input=opening))
        await stream.read()
        # Later messages are only bytes.
        await stream.write(node_pb2.ConsoleInput(input=pb.ConsoleInput(data=b"x", who="mallory", watch=True)))
        await stream.read()
        stream.cancel()
    assert heard == [opening, pb.ConsoleInput(data=b"x")]


async def test_client_disconnect_closes_the_launcher_stream(authority: Authority) -> None:
    async with lab(authority) as (client, fake, _):
        stream = client.Vnc(timeout=20)
        await stream.write(CALLS["Vnc"])
        await fake.until_open(1)
        stream.cancel()
        await fake.until_open(0)


async def test_launcher_end_or_refusal_ends_the_client_stream(authority: Authority) -> None:
    async def leave(requests: Any, context: Any, wrap: Any) -> None:
        await context.write(wrap(b"bye"))

    async def refuse(requests: Any, context: Any, wrap: Any) -> None:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "alice is using the serial console")

    async with lab(authority) as (client, fake, _):
        fake.console = leave
        stream = client.Console(timeout=20)
        await stream.write(CALLS["Console"])
        assert (await stream.read()).data == b"bye"
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
        fake.console = refuse
        with pytest.raises(grpc.aio.AioRpcError, match="alice") as caught:
            await call(client, "Console")
        assert code(caught) == "ALREADY_EXISTS"


async def test_stream_acceptance_or_refusal_precedes_data(authority: Authority) -> None:
    async def silent(requests: Any, context: Any, wrap: Any) -> None:
        await context.send_initial_metadata(TAKEN)
        async for _ in requests:
            pass

    async def refuse(requests: Any, context: Any, wrap: Any) -> None:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no serial console")

    async with lab(authority) as (client, fake, _):
        fake.console, fake.vnc = silent, refuse
        stream = client.Console(timeout=20)
        await stream.write(CALLS["Console"])
        assert TAKEN[0] in tuple(await stream.initial_metadata())
        stream.cancel()
        stream = client.Vnc(timeout=20)
        await stream.write(CALLS["Vnc"])
        assert TAKEN[0] not in tuple(await stream.initial_metadata())
        assert await stream.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_slow_client_applies_backpressure_to_the_launcher(authority: Authority) -> None:
    """At most a flow control window or two are buffered."""
    sent = 0
    stuck = asyncio.Event()

    async def pour(requests: Any, context: Any, wrap: Any) -> None:
        nonlocal sent
        piece = wrap(bytes(64 << 10))
        while sent < 512:
            try:
                async with asyncio.timeout(2):
                    await context.write(piece)
            except TimeoutError:
                stuck.set()
                return
            sent += 1

    async with lab(authority) as (client, fake, _):
        fake.vnc = pour
        stream = client.Vnc(timeout=60)
        await stream.write(CALLS["Vnc"])
        async with asyncio.timeout(30):
            await stuck.wait()
        stream.cancel()
    assert 0 < sent <= 32


async def test_handler_shutdown_ends_streams_with_unavailable(authority: Authority) -> None:
    async with lab(authority) as (client, fake, service):
        stream = client.Console(timeout=20)
        await stream.write(CALLS["Console"])
        await fake.until_open(1)
        service.close()
        with pytest.raises(grpc.aio.AioRpcError, match="is restarting") as caught:
            await stream.read()
        assert code(caught) == "UNAVAILABLE"
        await fake.until_open(0)


async def test_protocol_violation_is_invalid_argument(authority: Authority) -> None:
    async with lab(authority) as (client, fake, _):
        stream = client.Vnc(timeout=20)
        await stream.write(CALLS["Vnc"])
        await stream.write(node_pb2.VncInput(chunk=pb.Chunk(data=bytes((64 << 10) + 1))))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert code(caught) == "INVALID_ARGUMENT"
        stream = client.Console(timeout=20)
        await stream.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert code(caught) == "INVALID_ARGUMENT"
        await fake.until_open(0)


# -- limits


async def test_stream_limit_per_vm(authority: Authority) -> None:
    async with lab(authority, CallLimits(streams_of_vm=2)) as (client, fake, _):
        streams = [client.Vnc(timeout=30) for _ in range(2)]
        for stream in streams:
            await stream.write(CALLS["Vnc"])
        await fake.until_open(2)
        with pytest.raises(grpc.aio.AioRpcError, match="2 consoles and screens") as caught:
            await call(client, "Console")
        assert code(caught) == "RESOURCE_EXHAUSTED"
        streams[0].cancel()
        await fake.until_open(1)
        again = client.Vnc(timeout=30)
        await again.write(CALLS["Vnc"])
        await fake.until_open(2)
        for stream in (*streams, again):
            stream.cancel()


async def test_stream_limit_per_node_and_call_limit(authority: Authority) -> None:
    async with lab(authority, CallLimits(streams=0, calls=1)) as (client, fake, _):
        with pytest.raises(grpc.aio.AioRpcError, match="on this node") as caught:
            await call(client, "Vnc")
        assert code(caught) == "RESOURCE_EXHAUSTED"
        fake.hold.clear()
        waiting = asyncio.ensure_future(call(client, "Reset"))
        async with asyncio.timeout(20):
            await fake.was_asked.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(client, "Users")
        assert code(caught) == "RESOURCE_EXHAUSTED"
        fake.hold.set()
        await waiting
        await call(client, "Users")


async def test_stream_limit_per_namespace(authority: Authority) -> None:
    async with lab(authority, CallLimits(streams_of_namespace=0)) as (client, _, _):
        with pytest.raises(grpc.aio.AioRpcError, match="of this namespace") as caught:
            await call(client, "Vnc")
        assert code(caught) == "RESOURCE_EXHAUSTED"


def test_issued_certificates_are_of_one_kind(authority: Authority) -> None:
    assert tls.uris(authority.gateway().certificate) == [names.URI_GATEWAY]
    assert tls.uris(authority.node().certificate) == [names.node_uri("node1")]
