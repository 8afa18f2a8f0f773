"""Serial console, screen and guest agent of a real guest, by the launcher's own calls."""

import asyncio
import contextlib
import json
import os
import signal
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from guests import tiny
from guests.disk import KERNEL_ARGS
from launcher.console.screenshot import Screenshotter
from launcher.hypervisor.connection import Hypervisor
from launcher.paths import Paths
from protos import launcher_pb2 as pb
from protos import launcher_pb2_grpc
from tests.node.consolelab import ConsoleClient, Viewer
from tests.node.launcherlab import Pod, vmi
from tests.waiting import wait_for

pytestmark = pytest.mark.node
Stub = launcher_pb2_grpc.LauncherStub


def document(**devices: Any) -> dict[str, Any]:
    return vmi(
        "guest",
        domain={
            "memory": {"guest": "128Mi"},
            "devices": {"autoattachPodInterface": False, **devices},
            "firmware": {"kernelBoot": {
                "kernelArgs": KERNEL_ARGS,
                "container": {"image": "tiny", "kernelPath": "/boot/kernel", "initrdPath": "/boot/initrd"},
            }},
        },
    )  # fmt: skip


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


@pytest.fixture
def stub(pod: Pod) -> Iterator[Stub]:
    with pod.client() as client:
        yield client


@pytest.fixture
def attach(stub: Stub) -> Iterator[Any]:
    people: list[ConsoleClient] = []

    def attach_client(who: str, **first: bool) -> ConsoleClient:
        people.append(ConsoleClient(stub.Console, who, **first))
        people[-1].stream.call.initial_metadata()  # in or refused, before the next one comes
        return people[-1]

    yield attach_client
    for console_client in people:
        console_client.close()
    wait_for(lambda: not serial_connections(), "the serial socket to be let go")


def serial_connections() -> list[str]:
    """Established connections of the serial socket, as the kernel lists them (state 03)."""
    with open("/proc/net/unix", encoding="ascii") as table:  # noqa: PTH123
        return [line for line in table if line.rstrip().endswith("serial.sock") and line.split()[5] == "03"]


def log_in(console_client: ConsoleClient) -> None:
    console_client.wait_output("login: ")
    console_client.clear_output()
    console_client.type("root\n")
    console_client.wait_output("root@tiny:~# ")


# -- the serial console


def test_serial_socket_is_closed_without_clients(pod: Pod) -> None:
    assert not serial_connections()


def test_console_replays_last_screen_and_accepts_login(attach: Any) -> None:
    alice = attach("alice")
    log_in(alice)  # the prompt was printed before a client connected
    alice.type("echo $((6*7))hello\n")
    alice.wait_output("42hello")
    assert not alice.notices


def test_watchers_see_output_but_cannot_write(attach: Any) -> None:
    alice = attach("alice")
    watchers = [attach(f"watcher-{number}", watch=True) for number in range(3)]
    for watcher in watchers:
        watcher.wait_notice("alice has write access")
    watchers[0].type("echo should-never-$((1+1))\n")
    alice.type("echo seen-by-all-$((1+2))\n")
    for console_client in (alice, *watchers):
        console_client.wait_output("seen-by-all-3")
        assert b"should-never-2" not in console_client.output


def test_second_console_client_needs_takeover(attach: Any) -> None:
    alice = attach("alice")
    alice.type("\n")
    alice.wait_output("# ")
    mallory = attach("mallory")
    assert mallory.stream.rest() == []
    assert mallory.stream.error is not None and mallory.stream.error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "alice" in mallory.stream.error.details()


def test_takeover_moves_write_access_and_returns_it_on_close(attach: Any) -> None:
    alice = attach("alice")
    alice.type("echo alice-$((1+1))\n")
    alice.wait_output("alice-2")
    bob = attach("bob\x1b[2J", takeover=True)
    bob.wait_output("alice-2")  # the screen as it is
    alice.wait_notice("bob?[2J has taken over the console")
    alice.type("echo lost-$((1+1))\n")
    bob.type("echo bob-$((1+2))\n")
    for console_client in (alice, bob):
        console_client.wait_output("bob-3")
        assert b"lost-2" not in console_client.output
    bob.close()
    alice.wait_notice("you have write access")
    alice.type("echo again-$((2+2))\n")
    alice.wait_output("again-4")


def test_output_between_sessions_is_not_lost_or_duplicated(attach: Any, stub: Stub) -> None:
    """The guest prints without a client, and continues while the next client connects."""
    alice = attach("alice")
    alice.type("for i in $(seq 1 400); do echo n$i.; done\n")
    alice.wait_output("n3.")
    alice.close()
    bob = attach("bob", takeover=True)
    bob.wait_output("n400.")
    numbers = [int(part[1:]) for part in bob.output.replace(b"\r\n", b"").split(b".")[:-1] if part[1:].isdigit()]
    first = numbers[0]
    assert numbers == list(range(first, 401))


def test_half_closed_client_frees_console(attach: Any) -> None:
    alice = attach("alice")
    alice.wait_output("# ")
    alice.stream.hang_up()
    alice.wait_end()
    assert alice.stream.error is None
    bob = attach("bob")  # without takeover
    bob.type("echo free-$((1+1))\n")
    bob.wait_output("free-2")


def test_full_terminal_of_output_is_complete(attach: Any) -> None:
    alice = attach("alice")
    alice.type("stty -onlcr; seq 1 20000 | md5sum; seq 1 20000; echo fin''ished\n")
    alice.wait_output("finished")
    text = alice.output.replace(b"\r", b"")
    start = text.index(b"\n1\n2\n3\n") + 1
    assert text[start:].startswith(b"".join(b"%d\n" % number for number in range(1, 20001)))
    alice.type("stty onlcr\n")


# -- the screen


def test_two_viewers_share_screen(stub: Stub) -> None:
    one, two = Viewer(stub.Vnc), Viewer(stub.Vnc)
    try:
        one.handshake(shared=True)
        two.handshake(shared=False)  # requests exclusive access
        for viewer in (two, one, two):
            assert viewer.width >= 640 and viewer.height >= 400
            assert any(viewer.screen()), "the screen is black"
    finally:
        one.close()
        two.close()


def test_screenshot_matches_screen(stub: Stub) -> None:
    png = stub.Screenshot(pb.ScreenshotRequest(), timeout=30).png
    width, height, rows = decode(png)
    viewer = Viewer(stub.Vnc)
    try:
        viewer.handshake(shared=True)
        assert (viewer.width, viewer.height) == (width, height)
    finally:
        viewer.close()
    assert len(png) <= 900 << 10
    assert any(any(row) for row in rows), "the screen is black"


class FakeVmController:
    """The part of launcher.vm.controller.VmController that screenshots need."""

    def __init__(self, hypervisor: Hypervisor, domain: str) -> None:
        self.hypervisor = hypervisor
        self.running = lambda: domain
        self.has_screen = True


@contextlib.asynccontextmanager
async def connected(pod: Pod) -> AsyncIterator[tuple[Any, Paths]]:
    """The pod's machine, by a connection of our own to its libvirt."""
    paths = Paths(str(pod.root))
    hypervisor = Hypervisor(paths, lambda: None, lambda: None, lambda _: None)
    connecting = asyncio.create_task(hypervisor.keep_connected())
    try:
        yield FakeVmController(hypervisor, json.loads((pod.run / "state.json").read_text())["domain"]), paths
    finally:
        connecting.cancel()


async def test_oversized_screenshot_is_scaled_down(pod: Pod) -> None:
    async with connected(pod) as (machine, paths):
        whole = await Screenshotter(machine, paths).png()
        small = await Screenshotter(machine, paths, limit=len(whole) // 2).png()
    assert 0 < len(small) <= len(whole) // 2
    width, height, rows = decode(small)
    assert width < decode(whole)[0] and height < decode(whole)[1]
    assert any(any(row) for row in rows)
    assert not (pod.run / "screen.ppm").exists()


def decode(png: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and rows as they are, filters and all."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, packed, size = 8, b"", (0, 0, 0)
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        data = png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length)[0] == zlib.crc32(kind + data)
        if kind == b"IHDR":
            size = struct.unpack_from(">IIxB", data)
        if kind == b"IDAT":
            packed += data
        at += 12 + length
    width, height, colour = size
    assert colour == 2
    raw = zlib.decompress(packed)
    stride = 3 * width + 1
    assert len(raw) == stride * height
    return width, height, [raw[stride * y + 1 : stride * (y + 1)] for y in range(height)]


# -- verbs


def boot_id(console_client: ConsoleClient) -> bytes:
    console_client.clear_output()
    console_client.type("\ncat /proc/sys/kernel/random/boot_id; echo do''ne\n")
    console_client.wait_output("done")
    return console_client.output.split(b"done")[0].split()[-1]


def test_users_and_file_systems_are_listed(stub: Stub, attach: Any) -> None:
    alice = attach("alice")
    alice.type("\n")
    alice.wait_output("# ")
    reply = stub.Users(pb.UsersRequest(), timeout=30)
    assert all(user.name for user in reply.users)
    for filesystem in stub.Filesystems(pb.FilesystemsRequest(), timeout=30).filesystems:
        assert filesystem.mount_point.startswith("/") and filesystem.total_bytes >= filesystem.used_bytes


def frozen_until(pod: Pod) -> float:
    return float(json.loads((pod.run / "state.json").read_text()).get("thaw_at") or 0)


def test_freeze_and_unfreeze_change_state(pod: Pod, stub: Stub) -> None:
    stub.Freeze(pb.FreezeRequest(unfreeze_seconds=600), timeout=60)
    assert frozen_until(pod)
    stub.Freeze(pb.FreezeRequest(), timeout=60)  # again: only the time is new
    stub.Unfreeze(pb.UnfreezeRequest(), timeout=60)
    assert not frozen_until(pod)
    assert pod.report().guest.os.kernel_release


def test_frozen_guest_thaws_after_timeout_despite_server_restart(pod: Pod, stub: Stub) -> None:
    stub.Freeze(pb.FreezeRequest(unfreeze_seconds=1), timeout=60)
    os.kill(pod.child("-m\0launcher"), signal.SIGKILL)
    wait_for(lambda: not frozen_until(pod), "the thaw", 60)
    wait_for(lambda: pod.report().agent_connected, "the agent")


def test_soft_reboot_and_reset_restart_guest(stub: Stub, attach: Any) -> None:
    alice = attach("alice")
    before = boot_id(alice)
    alice.clear_output()
    stub.SoftReboot(pb.SoftRebootRequest(), timeout=60)
    log_in(alice)  # the stream stays through it all
    between = boot_id(alice)
    assert between != before
    alice.clear_output()
    report = stub.Reset(pb.ResetRequest(), timeout=60)
    assert report.state == pb.DOMAIN_STATE_RUNNING
    log_in(alice)
    assert boot_id(alice) not in (before, between)


async def test_guest_without_agent_reboots_by_acpi(pod: Pod, stub: Stub, attach: Any) -> None:
    alice = attach("alice")
    before = await asyncio.to_thread(boot_id, alice)
    alice.clear_output()
    async with connected(pod) as (machine, _):
        await machine.hypervisor.reboot(machine.running(), agent=False)
    await asyncio.to_thread(alice.wait_output, "guest: shutting down (power button)")
    await asyncio.to_thread(log_in, alice)
    assert await asyncio.to_thread(boot_id, alice) != before
    assert pod.report().state == pb.DOMAIN_STATE_RUNNING


# -- the end


def test_streams_end_with_vm(pod: Pod, attach: Any, stub: Stub) -> None:
    """The last one: it ends the guest."""
    alice = attach("alice")
    viewer = Viewer(stub.Vnc)
    viewer.handshake(shared=True)
    alice.type("\n")
    alice.wait_output("# ")
    pod.terminate()
    alice.wait_end()
    assert alice.stream.error is None and b"guest: shutting down" in alice.output
    viewer.stream.rest()
    assert viewer.stream.error is None
    assert pod.wait(60) == 0


def test_calls_for_missing_features_are_refused() -> None:
    built = tiny.build()
    with Pod() as pod:
        for name in ("kernel", "initrd"):
            pod.image("kernel-boot", (built.folder / name).read_bytes(), f"boot/{name}")
        pod.start()
        with pod.client() as stub:
            for call in (
                lambda: stub.Reset(pb.ResetRequest(), timeout=30),
                lambda: stub.Screenshot(pb.ScreenshotRequest(), timeout=30),
                lambda: stub.Users(pb.UsersRequest(), timeout=30),
                lambda: next(stub.Console(iter([pb.ConsoleInput()]), timeout=30)),
                lambda: next(stub.Vnc(iter([pb.Chunk()]), timeout=30)),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION, caught.value
            devices = {"autoattachSerialConsole": False, "autoattachGraphicsDevice": False}
            pod.sync(document(**devices))
            for name, call in {
                "autoattachSerialConsole": lambda: next(stub.Console(iter([pb.ConsoleInput()]), timeout=30)),
                "autoattachGraphicsDevice": lambda: next(stub.Vnc(iter([pb.Chunk()]), timeout=30)),
                "has no screen": lambda: stub.Screenshot(pb.ScreenshotRequest(), timeout=30),
            }.items():
                with pytest.raises(grpc.RpcError, match=name) as caught:
                    call()
                assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION, caught.value
            # The guest still boots: no agent responds yet.
            with pytest.raises(grpc.RpcError, match="no guest agent is connected"):
                stub.Freeze(pb.FreezeRequest(), timeout=30)
