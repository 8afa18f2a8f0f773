"""The serial console hub: output, write access, backpressure."""

import asyncio
import contextlib
import pathlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from launcher.console import serial_hub
from launcher.console.serial_hub import LAG, SerialClient, SerialHub
from launcher.console.serial_tail import LINES, SerialTail
from launcher.vm.errors import OperationRefused
from tests.unit.tasklab import others, settle
from tests.waiting import until

SECONDS = 20


class Qemu:
    """The other end of the serial socket, and the log that the supervisor keeps."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.path, self.last = str(folder / "serial.sock"), str(folder / "serial.tail")
        self._tail = SerialTail(self.last)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self.guest: socket.socket | None = None

    async def accept(self) -> None:
        self.guest, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(self._listener), SECONDS)
        self.guest.setblocking(False)

    def log(self, data: bytes) -> None:
        self._tail.feed(data)
        self._tail.save()

    async def print(self, data: bytes) -> None:
        """Write to the connected client, then to the log, as QEMU does."""
        if self.guest:
            await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.guest, data), SECONDS)
        self.log(data)

    async def typed(self, count: int) -> bytes:
        assert self.guest
        data = b""
        while len(data) < count:
            got = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.guest, count - len(data)), SECONDS)
            assert got
            data += got
        return data

    def hang_up(self) -> None:
        assert self.guest
        self.guest.close()
        self.guest = None

    def close(self) -> None:
        self._listener.close()
        if self.guest:
            self.guest.close()


@pytest.fixture
def qemu(tmp_path: pathlib.Path) -> Iterator[Qemu]:
    made = Qemu(tmp_path)
    yield made
    made.close()


class Person:
    """Reads a client's messages."""

    def __init__(self, viewer: SerialClient) -> None:
        self.viewer = viewer
        self.seen = b""
        self.notices: list[str] = []
        self._output = viewer.output()

    async def step(self) -> bool:
        try:
            message = await asyncio.wait_for(anext(self._output), SECONDS)
        except StopAsyncIteration:
            return False
        self.seen += message.data
        self.notices += [message.notice] if message.notice else []
        return True

    async def see(self, wanted: bytes) -> None:
        while wanted not in self.seen:
            assert await self.step(), self.seen

    async def hear(self, wanted: str) -> None:
        while not any(wanted in notice for notice in self.notices):
            assert await self.step(), self.notices

    async def end(self) -> None:
        while await self.step():
            pass


@contextlib.asynccontextmanager
async def hub(qemu: Qemu) -> AsyncIterator[SerialHub]:
    made = SerialHub(qemu.path, qemu.last)
    yield made
    for viewer in list(made._viewers):
        made.leave(viewer)


async def test_close_ends_clients_and_leaves_no_task(qemu: Qemu) -> None:
    made = SerialHub(qemu.path, qemu.last)
    person = await come(made, qemu, "alice")
    before = others()
    await made.close()
    await person.end()
    assert not [task for task in before if task.get_name() == "serial-console" and not task.done()]


async def test_unhandled_exception_while_reading_is_logged_with_the_socket(
    qemu: Qemu, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async with hub(qemu) as made:

        async def fail(_serial: object) -> None:
            raise LookupError("odd")

        monkeypatch.setattr(made, "_read", fail)
        await come(made, qemu, "alice")
        await settle()
    logged = capfd.readouterr().err
    assert "LookupError('odd')" in logged and qemu.path in logged


async def come(hub: SerialHub, qemu: Qemu, who: str, watch: bool = False, takeover: bool = False) -> Person:
    first = not hub._viewers
    viewer, _ = await asyncio.gather(hub.attach(who, watch, takeover), qemu.accept() if first else asyncio.sleep(0))
    return Person(viewer)


async def test_earlier_output_is_replayed_first(qemu: Qemu) -> None:
    qemu.log(b"tiny login: ")
    async with hub(qemu) as h:
        alice = await come(h, qemu, "alice")
        await alice.see(b"tiny login: ")
        await qemu.print(b"root\r\n")
        bob = await come(h, qemu, "bob", watch=True)
        await alice.see(b"login: root\r\n")
        await bob.see(b"tiny login: root\r\n")
        assert alice.seen == bob.seen == b"tiny login: root\r\n"


async def test_output_during_attach_is_neither_lost_nor_duplicated(qemu: Qemu) -> None:
    qemu.log(b"one\n")

    async def accept_and_print() -> None:
        qemu.log(b"two\n")  # QEMU has not taken the connection yet
        await qemu.accept()
        await qemu.print(b"three\n")

    async with hub(qemu) as h:
        viewer, _ = await asyncio.gather(h.attach("alice", False, False), accept_and_print())
        await qemu.print(b"four\n")
        alice = Person(viewer)
        await alice.see(b"four\n")
        assert alice.seen == b"one\ntwo\nthree\nfour\n"


async def test_heavy_output_during_attach_is_complete(qemu: Qemu) -> None:
    """More output than is kept: the earlier tail is not replayed, since there would be a gap."""
    torrent = b"".join(b"%06d\n" % number for number in range(3000))
    qemu.log(b"before\n")

    async def accept_and_print() -> None:
        await qemu.accept()
        await qemu.print(torrent)

    async with hub(qemu) as h:
        viewer, _ = await asyncio.gather(h.attach("alice", False, False), accept_and_print())
        alice = Person(viewer)
        await qemu.print(b"end")
        await alice.see(b"end")
        assert (torrent + b"end").endswith(alice.seen) and alice.seen.count(b"\n") == LINES


async def test_last_client_closes_the_socket(qemu: Qemu) -> None:
    async with hub(qemu) as h:
        alice = await come(h, qemu, "alice")
        bob = await come(h, qemu, "bob", watch=True)
        h.leave(alice.viewer)
        await qemu.print(b"still")
        await bob.see(b"still")
        h.leave(bob.viewer)
        assert qemu.guest and await asyncio.get_running_loop().sock_recv(qemu.guest, 1) == b""
        qemu.hang_up()
        again = await come(h, qemu, "alice")
        await again.see(b"still")


async def test_only_one_client_has_write_access(qemu: Qemu) -> None:
    async with hub(qemu) as h:
        alice = await come(h, qemu, "alice")
        watcher = await come(h, qemu, "wendy", watch=True)
        with pytest.raises(OperationRefused, match="alice is using the serial console") as caught:
            await h.attach("mallory", False, False)
        assert caught.value.code == "ALREADY_EXISTS"
        await h.type(watcher.viewer, b"no")
        await h.type(watcher.viewer, b"no")
        await watcher.hear("your session is read-only: input is ignored")
        bob = await come(h, qemu, "bob", takeover=True)
        await alice.hear("bob has taken over the console")
        await h.type(alice.viewer, b"no")
        await h.type(bob.viewer, b"b")
        assert await qemu.typed(1) == b"b"
        h.leave(bob.viewer)
        await alice.hear("bob has left the console: you have write access")
        await h.type(alice.viewer, b"a")
        assert await qemu.typed(1) == b"a"
        assert len([n for n in watcher.notices if "input is ignored" in n]) == 1


async def test_first_read_only_client_leaves_write_access_to_the_next(qemu: Qemu) -> None:
    async with hub(qemu) as h:
        await come(h, qemu, "wendy", watch=True)
        alice = await come(h, qemu, "alice")
        await h.type(alice.viewer, b"a")
        assert await qemu.typed(1) == b"a"


async def test_streams_end_with_the_vm_and_new_clients_are_refused(qemu: Qemu) -> None:
    async with hub(qemu) as h:
        alice = await come(h, qemu, "alice")
        bob = await come(h, qemu, "bob", watch=True)
        await qemu.print(b"Power down\n")
        qemu.hang_up()
        for person in (alice, bob):
            await person.end()
            assert person.seen.endswith(b"Power down\n")
        with pytest.raises(OperationRefused, match="has ended") as caught:
            await h.attach("late", True, False)
        assert caught.value.code == "FAILED_PRECONDITION"


async def test_no_serial_console(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OperationRefused, match="autoattachSerialConsole") as caught:
        await SerialHub(str(tmp_path / "none"), str(tmp_path / "tail")).attach("alice", False, False)
    assert caught.value.code == "FAILED_PRECONDITION"


async def test_client_limit(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial_hub, "MAX_CLIENTS", 2)
    async with hub(qemu) as h:
        await come(h, qemu, "alice")
        await come(h, qemu, "bob", watch=True)
        with pytest.raises(OperationRefused, match="2 clients") as caught:
            await h.attach("carol", True, False)
        assert caught.value.code == "RESOURCE_EXHAUSTED"


async def test_user_names_are_sanitized(qemu: Qemu) -> None:
    async with hub(qemu) as h:
        alice = await come(h, qemu, "alice")
        await come(h, qemu, "\x1b[2J" + "x" * 5000, takeover=True)
        await alice.hear("taken over")
        (notice,) = alice.notices
        assert notice.isprintable() and len(notice) < 400


# -- slowness


def waiting(person: Person) -> int:
    return len(person.viewer._waiting)


async def test_slow_reader_loses_output_and_is_notified(qemu: Qemu) -> None:
    async with hub(qemu) as h:
        alice = await come(h, qemu, "alice")
        wendy = await come(h, qemu, "wendy", watch=True)
        total = 40 * LAG
        printing = asyncio.ensure_future(qemu.print(b"x" * total))
        while alice.seen.count(b"x") < total:
            await alice.step()
            assert waiting(wendy) <= LAG + serial_hub.CHUNK
        await printing
        await wendy.hear("bytes of output were dropped")
        (missed,) = [notice for notice in wendy.notices if "dropped" in notice]
        assert int(missed.split()[0]) + len(wendy.seen) == total
        await qemu.print(b"live again")
        await wendy.see(b"live again")
        assert not [notice for notice in alice.notices if "dropped" in notice]


async def test_guest_waits_for_the_writer(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial_hub, "STALL_SECONDS", 3600)
    async with hub(qemu) as h:
        alice = await come(h, qemu, "alice")
        total = 64 * LAG
        printing = asyncio.ensure_future(qemu.print(b"x" * total))
        await until(lambda: alice.viewer.behind)
        assert not printing.done()
        while len(alice.seen) < total:
            await alice.step()
            assert waiting(alice) <= LAG + serial_hub.CHUNK
        await printing
        assert not alice.notices


async def test_guest_waits_for_the_writer_at_most_stall_seconds(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial_hub, "STALL_SECONDS", 0.05)
    async with hub(qemu) as h:
        alice = await come(h, qemu, "alice")
        await qemu.print(b"x" * (64 * LAG))  # returns, though alice reads nothing
        assert waiting(alice) <= LAG + serial_hub.CHUNK
        await alice.hear("dropped")


async def test_input_waits_for_the_guest(qemu: Qemu) -> None:
    text = b"y" * (4 << 20)
    async with hub(qemu) as h:
        alice = await come(h, qemu, "alice")
        typing = asyncio.ensure_future(h.type(alice.viewer, text))
        assert await qemu.typed(len(text)) == text
        await typing


async def test_pending_input_is_dropped_on_takeover(qemu: Qemu) -> None:
    async with hub(qemu) as h:
        alice = await come(h, qemu, "alice")
        typing = asyncio.ensure_future(h.type(alice.viewer, b"y" * (4 << 20)))
        await asyncio.sleep(0)
        bob = await come(h, qemu, "bob", takeover=True)
        await asyncio.wait_for(typing, SECONDS)
        reading = asyncio.ensure_future(h.type(bob.viewer, b"z"))
        assert qemu.guest
        data = b""
        while b"z" not in data:
            data += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(qemu.guest, 1 << 20), SECONDS)
        assert 0 < data.count(b"y") < 4 << 20
        await reading
