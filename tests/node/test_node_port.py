"""From the gateway's side of a node's port, by mTLS, to a real guest: log in, look at the screen, ask its agent."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import grpc
import pytest

from api import names
from guests import tiny
from kit import rpc
from kit.duplex import TAKEN
from protos import launcher_pb2 as pb
from protos import launcher_pb2_grpc, node_pb2, node_pb2_grpc
from tests.fakes import nodelab
from tests.fakes.nodelab import NODE, VMI, Authority, Direct
from tests.node.consolelab import PATIENCE, ConsoleClient, Viewer
from tests.node.launcherlab import Pod
from tests.node.test_launcher_consoles import document, log_in
from tests.waiting import wait_for

pytestmark = pytest.mark.node


@contextlib.contextmanager
def served(pod: Pod, authority: Authority) -> Iterator[int]:
    """A handler's port that leads to one launcher, in a thread of its own."""
    started: Future[tuple[int, asyncio.Event, asyncio.AbstractEventLoop]] = Future()

    async def serve() -> None:
        fd = os.open(pod.run / "launcher.sock", os.O_PATH)
        try:
            async with rpc.channel(fd) as channel:
                stub = launcher_pb2_grpc.LauncherStub(channel)
                async with nodelab.node(lambda *_: Direct(stub, pod.report), authority) as (_, port):
                    over = asyncio.Event()
                    started.set_result((port, over, asyncio.get_running_loop()))
                    await over.wait()
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise
        finally:
            os.close(fd)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    port, over, loop = started.result(PATIENCE)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


@contextlib.contextmanager
def gateway(port: int, authority: Authority) -> Iterator[Any]:
    """The gateway's client."""
    me = authority.gateway()
    credentials = grpc.ssl_channel_credentials(authority.ca.certificate, me.key, me.certificate)
    options = [("grpc.ssl_target_name_override", names.node_dns_name(NODE)), ("grpc.http2.bdp_probe", 0)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        yield node_pb2_grpc.NodeStub(channel)


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    built = tiny.build()
    with Pod() as pod:
        for name in ("kernel", "initrd"):
            pod.image("kernel-boot", (built.folder / name).read_bytes(), f"boot/{name}")
        pod.start()
        pod.sync(document())
        wait_for(lambda: pod.report().agent_connected, "the guest agent", 120)
        yield pod


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def node(pod: Pod, authority: Authority) -> Iterator[Any]:
    with served(pod, authority) as port, gateway(port, authority) as stub:
        yield stub


def console_client(node: Any, who: str, **first: bool) -> ConsoleClient:
    opened = iter([True])

    def wrap(message: pb.ConsoleInput) -> node_pb2.ConsoleInput:
        return node_pb2.ConsoleInput(vmi=VMI if next(opened, False) else None, input=message)

    came = ConsoleClient(node.Console, who, wrap, **first)
    came.stream.call.initial_metadata()  # in or refused, before the next one comes
    return came


def viewer(node: Any) -> Viewer:
    return Viewer(node.Vnc, node_pb2.VncInput(vmi=VMI), lambda data: node_pb2.VncInput(chunk=pb.Chunk(data=data)))


def test_console_login_and_takeover_work_through_node_port(node: Any) -> None:
    alice = console_client(node, "alice")
    log_in(alice)
    bob = console_client(node, "bob", takeover=True)
    alice.wait_notice("bob has taken over the console")
    bob.type("echo $((6*7))hello\n")
    for each in (alice, bob):
        each.wait_output("42hello")
        each.close()


def test_accepted_console_is_confirmed_immediately(node: Any) -> None:
    """Also if the guest prints nothing: the gateway waits for this before it responds to its client."""
    alice = console_client(node, "alice")
    assert TAKEN[0] in tuple(alice.stream.call.initial_metadata())
    mallory = console_client(node, "mallory")
    assert TAKEN[0] not in tuple(mallory.stream.call.initial_metadata())
    assert mallory.stream.rest() == []
    looker = viewer(node)
    assert TAKEN[0] in tuple(looker.stream.call.initial_metadata())
    for each in (alice, mallory, looker):
        each.close()


def test_two_vnc_clients_share_screen_through_node_port(node: Any) -> None:
    viewers = [viewer(node), viewer(node)]
    for each in viewers:
        each.handshake(shared=False)
    for each in viewers:
        assert any(each.screen())
        each.close()


def test_vmi_subresource_calls_work_through_node_port(node: Any, pod: Pod) -> None:
    assert node.Screenshot(VMI, timeout=30).png.startswith(b"\x89PNG")
    wait_for(lambda: node.GuestInfo(VMI, timeout=30).os.kernel_release, "what the agent tells")
    node.Users(VMI, timeout=30)
    node.Filesystems(VMI, timeout=30)
    node.Freeze(node_pb2.FreezeVmi(vmi=VMI, unfreeze_seconds=60), timeout=60)
    node.Unfreeze(VMI, timeout=60)
    node.Pause(VMI, timeout=30)
    assert pod.report().state == pb.DOMAIN_STATE_PAUSED
    with pytest.raises(grpc.RpcError, match="paused") as caught:
        node.SoftReboot(VMI, timeout=30)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    node.Unpause(VMI, timeout=30)
    assert pod.report().state == pb.DOMAIN_STATE_RUNNING
    node.Reset(VMI, timeout=30)


def test_killed_launcher_server_is_reported_as_unavailable(node: Any, pod: Pod) -> None:
    alice = console_client(node, "alice", takeover=True)
    alice.wait_output("guest")
    os.kill(pod.child("-m\0launcher"), signal.SIGKILL)
    alice.stream.rest()
    assert alice.stream.error is not None and alice.stream.error.code() is grpc.StatusCode.UNAVAILABLE
    # The VM is unaffected.
    pod.wait_state(pb.DOMAIN_STATE_RUNNING)


def test_console_history_survives_server_restart(node: Any) -> None:
    alice = console_client(node, "alice")
    alice.wait_output("login: ")
    alice.close()


def test_vm_survives_end_of_handler(pod: Pod, authority: Authority) -> None:
    with contextlib.ExitStack() as handler:
        port = handler.enter_context(served(pod, authority))
        with gateway(port, authority) as stub:
            alice = console_client(stub, "alice")
            alice.wait_output("login: ")
            handler.close()
            alice.stream.rest()
            assert alice.stream.error is not None
            assert alice.stream.error.code() is grpc.StatusCode.UNAVAILABLE
            assert "is restarting" in alice.stream.error.details()
    assert pod.report().state == pb.DOMAIN_STATE_RUNNING
