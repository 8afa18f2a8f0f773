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
from tests.node.consolelab import Person, Viewer
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
    people: list[Person] = []

    def come(who: str, **first: bool) -> Person:
        people.append(Person(stub.Console, who, **first))
        people[-1].stream.call.initial_metadata()  # in or refused, before the next one comes
        return people[-1]

    yield come
    for person in people:
        person.close()
    wait_for(lambda: not serial_connections(), "the serial socket to be let go")


def serial_connections() -> list[str]:
    """Established connections of the serial socket, as the kernel lists them (state 03)."""
    with open("/proc/net/unix", encoding="ascii") as table:  # noqa: PTH123
        return [line for line in table if line.rstrip().endswith("serial.sock") and line.split()[5] == "03"]


def log_in(person: Person) -> None:
    person.see("login: ")
    person.forget()
    person.type("root\n")
    person.see("root@tiny:~# ")


# -- the serial console


def test_nobody_holds_the_serial_socket_while_nobody_looks(pod: Pod) -> None:
    assert not serial_connections()


def test_the_last_screenful_is_shown_first_and_one_can_log_in(attach: Any) -> None:
    alice = attach("alice")
    log_in(alice)  # the prompt was printed before anybody was there
    alice.type("echo $((6*7))hello\n")
    alice.see("42hello")
    assert not alice.notices


def test_many_watch_one_types(attach: Any) -> None:
    alice = attach("alice")
    watchers = [attach(f"watcher-{number}", watch=True) for number in range(3)]
    for watcher in watchers:
        watcher.hear("alice has write access")
    watchers[0].type("echo should-never-$((1+1))\n")
    alice.type("echo seen-by-all-$((1+2))\n")
    for person in (alice, *watchers):
        person.see("seen-by-all-3")
        assert b"should-never-2" not in person.seen


def test_a_second_person_has_to_say_takeover(attach: Any) -> None:
    alice = attach("alice")
    alice.type("\n")
    alice.see("# ")
    mallory = attach("mallory")
    assert mallory.stream.rest() == []
    assert mallory.stream.error is not None and mallory.stream.error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "alice" in mallory.stream.error.details()


def test_takeover_and_back(attach: Any) -> None:
    alice = attach("alice")
    alice.type("echo alice-$((1+1))\n")
    alice.see("alice-2")
    bob = attach("bob\x1b[2J", takeover=True)
    bob.see("alice-2")  # the screen as it is
    alice.hear("bob?[2J has taken over the console")
    alice.type("echo lost-$((1+1))\n")
    bob.type("echo bob-$((1+2))\n")
    for person in (alice, bob):
        person.see("bob-3")
        assert b"lost-2" not in person.seen
    bob.close()
    alice.hear("you have write access")
    alice.type("echo again-$((2+2))\n")
    alice.see("again-4")


def test_nothing_is_lost_or_doubled_between_two_visits(attach: Any, stub: Stub) -> None:
    """Output of the time when nobody was there, which goes on while the next person comes."""
    alice = attach("alice")
    alice.type("for i in $(seq 1 400); do echo n$i.; done\n")
    alice.see("n3.")
    alice.close()
    bob = attach("bob", takeover=True)
    bob.see("n400.")
    numbers = [int(part[1:]) for part in bob.seen.replace(b"\r\n", b"").split(b".")[:-1] if part[1:].isdigit()]
    first = numbers[0]
    assert numbers == list(range(first, 401))


def test_who_hangs_up_has_left(attach: Any) -> None:
    alice = attach("alice")
    alice.see("# ")
    alice.stream.hang_up()
    alice.see_end()
    assert alice.stream.error is None
    bob = attach("bob")  # without takeover
    bob.type("echo free-$((1+1))\n")
    bob.see("free-2")


def test_a_full_terminal_of_output_arrives_whole(attach: Any) -> None:
    alice = attach("alice")
    alice.type("stty -onlcr; seq 1 20000 | md5sum; seq 1 20000; echo fin''ished\n")
    alice.see("finished")
    text = alice.seen.replace(b"\r", b"")
    start = text.index(b"\n1\n2\n3\n") + 1
    assert text[start:].startswith(b"".join(b"%d\n" % number for number in range(1, 20001)))
    alice.type("stty onlcr\n")


# -- the screen


def test_two_viewers_see_the_screen_at_once(stub: Stub) -> None:
    one, two = Viewer(stub.Vnc), Viewer(stub.Vnc)
    try:
        one.handshake(shared=True)
        two.handshake(shared=False)  # asks that all others be thrown out
        for viewer in (two, one, two):
            assert viewer.width >= 640 and viewer.height >= 400
            assert any(viewer.screen()), "the screen is black"
    finally:
        one.close()
        two.close()


def test_the_screenshot_shows_what_the_screen_shows(stub: Stub) -> None:
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


class Machine:
    """As much of launcher.vm.controller.VmController as taking pictures needs."""

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
        yield Machine(hypervisor, json.loads((pod.run / "state.json").read_text())["domain"]), paths
    finally:
        connecting.cancel()


async def test_a_picture_that_would_be_too_large_is_taken_smaller(pod: Pod) -> None:
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


def boot_id(person: Person) -> bytes:
    person.forget()
    person.type("\ncat /proc/sys/kernel/random/boot_id; echo do''ne\n")
    person.see("done")
    return person.seen.split(b"done")[0].split()[-1]


def test_users_and_file_systems(stub: Stub, attach: Any) -> None:
    alice = attach("alice")
    alice.type("\n")
    alice.see("# ")
    reply = stub.Users(pb.UsersRequest(), timeout=30)
    assert all(user.name for user in reply.users)
    for filesystem in stub.Filesystems(pb.FilesystemsRequest(), timeout=30).filesystems:
        assert filesystem.mount_point.startswith("/") and filesystem.total_bytes >= filesystem.used_bytes


def frozen_until(pod: Pod) -> float:
    return float(json.loads((pod.run / "state.json").read_text()).get("thaw_at") or 0)


def test_freeze_and_unfreeze(pod: Pod, stub: Stub) -> None:
    stub.Freeze(pb.FreezeRequest(unfreeze_seconds=600), timeout=60)
    assert frozen_until(pod)
    stub.Freeze(pb.FreezeRequest(), timeout=60)  # again: only the time is new
    stub.Unfreeze(pb.UnfreezeRequest(), timeout=60)
    assert not frozen_until(pod)
    assert pod.report().guest.os.kernel_release


def test_it_thaws_by_itself_even_after_the_server_died(pod: Pod, stub: Stub) -> None:
    stub.Freeze(pb.FreezeRequest(unfreeze_seconds=1), timeout=60)
    os.kill(pod.child("-m\0launcher"), signal.SIGKILL)
    wait_for(lambda: not frozen_until(pod), "the thaw", 60)
    wait_for(lambda: pod.report().agent_connected, "the agent")


def test_soft_reboot_and_reset(stub: Stub, attach: Any) -> None:
    alice = attach("alice")
    before = boot_id(alice)
    alice.forget()
    stub.SoftReboot(pb.SoftRebootRequest(), timeout=60)
    log_in(alice)  # the stream stays through it all
    between = boot_id(alice)
    assert between != before
    alice.forget()
    report = stub.Reset(pb.ResetRequest(), timeout=60)
    assert report.state == pb.DOMAIN_STATE_RUNNING
    log_in(alice)
    assert boot_id(alice) not in (before, between)


async def test_a_guest_without_an_agent_reboots_by_acpi(pod: Pod, stub: Stub, attach: Any) -> None:
    alice = attach("alice")
    before = await asyncio.to_thread(boot_id, alice)
    alice.forget()
    async with connected(pod) as (machine, _):
        await machine.hypervisor.reboot(machine.running(), agent=False)
    await asyncio.to_thread(alice.see, "guest: shutting down (power button)")
    await asyncio.to_thread(log_in, alice)
    assert await asyncio.to_thread(boot_id, alice) != before
    assert pod.report().state == pb.DOMAIN_STATE_RUNNING


# -- the end


def test_all_streams_end_with_the_vm(pod: Pod, attach: Any, stub: Stub) -> None:
    """The last one: it ends the guest."""
    alice = attach("alice")
    viewer = Viewer(stub.Vnc)
    viewer.handshake(shared=True)
    alice.type("\n")
    alice.see("# ")
    pod.terminate()
    alice.see_end()
    assert alice.stream.error is None and b"guest: shutting down" in alice.seen
    viewer.stream.rest()
    assert viewer.stream.error is None
    assert pod.wait(60) == 0


def test_what_is_not_there_is_refused_in_words() -> None:
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
            # Booting still: nobody answers in there yet.
            with pytest.raises(grpc.RpcError, match="no guest agent is connected"):
                stub.Freeze(pb.FreezeRequest(), timeout=30)
