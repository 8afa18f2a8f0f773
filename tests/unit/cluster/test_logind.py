"""The logind substitute on a real bus: delay locks as a kubelet uses them."""

from __future__ import annotations

import array
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import logind
from cluster.logind import CALL, LOGIN, LOGIN_PATH, MANAGER, REPLY, SIGNAL, SYSTEMD, BusConnection, Message
from tests.waiting import wait_for

CONFIG = Path(logind.__file__).with_name("dbus.conf")
SECONDS = 20.0


class Bed:
    """A bus and logind on it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "bus")
        self.configuration, self.off = folder / "logind.conf.d", folder / "poweroff"
        self.configuration.mkdir()
        own = folder / "dbus.conf"
        own.write_text(CONFIG.read_text().replace("/run/dbus/system_bus_socket", self.path))
        command = ["dbus-daemon", f"--config-file={own}", "--nofork", "--nopidfile", "--nosyslog"]
        self.daemon = subprocess.Popen(command)
        self.logind = logind.Logind(BusConnection(self.path), self.configuration, self.off)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            self.logind.run()
        except logind.ProtocolError:
            return  # the bus was closed at the end of the test

    def client(self) -> BusConnection:
        return BusConnection(self.path)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    if shutil.which("dbus-daemon") is None or os.getuid() != 0:
        pytest.skip("needs root and the Debian package dbus-daemon")
    made = Bed(tmp_path)
    yield made
    made.daemon.terminate()
    made.daemon.wait()


def delay(client: BusConnection) -> int:
    (microseconds,) = client.call(
        LOGIN, LOGIN_PATH, "org.freedesktop.DBus.Properties", "Get", "ss", MANAGER, "InhibitDelayMaxUSec"
    )
    return int(microseconds)


def inhibit(client: BusConnection, what: str = "shutdown", mode: str = "delay") -> int:
    """The descriptor of a delay lock, as the kubelet gets it."""
    fields = {"destination": LOGIN, "path": LOGIN_PATH, "interface": MANAGER, "member": "Inhibit", "signature": "ssss"}
    serial = client.send(CALL, fields, (what, "kubelet", "Kubelet needs time to handle node shutdown", mode))
    client.socket.settimeout(SECONDS)
    while True:
        data, ancillary, _, _ = client.socket.recvmsg(1 << 16, socket.CMSG_SPACE(16))
        for _level, kind, rights in ancillary:
            if kind == socket.SCM_RIGHTS:
                answer = logind.decoded(data)
                assert (answer.kind, answer.fields["answers"], answer.body) == (REPLY, serial, (0,))
                return array.array("i", rights)[0]


def signal(client: BusConnection) -> Message:
    while True:
        for message in client.received():
            if message.kind == SIGNAL and message.fields["member"] == "PrepareForShutdown":
                return message


def test_delay_is_read_from_configuration_and_reloaded_on_sighup(bed: Bed) -> None:
    kubelet = bed.client()
    assert delay(kubelet) == 5_000_000
    (bed.configuration / "99-kubelet.conf").write_text("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec=90\n")
    assert delay(kubelet) == 5_000_000
    path = "/org/freedesktop/systemd1"
    kubelet.call(SYSTEMD, path, f"{SYSTEMD}.Manager", "KillUnit", "ssi", "systemd-logind.service", "all", 1)
    assert delay(kubelet) == 90_000_000


def test_power_off_waits_for_the_delay_lock(bed: Bed) -> None:
    (bed.configuration / "a.conf").write_text("[Login]\nInhibitDelayMaxSec=600\n")
    bed.logind.delay = logind.delay_seconds(bed.configuration)
    kubelet, administrator = bed.client(), bed.client()
    held = inhibit(kubelet)
    match = f"type='signal',interface='{MANAGER}',member='PrepareForShutdown'"
    kubelet.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", match)
    administrator.call(LOGIN, LOGIN_PATH, MANAGER, "PowerOff", "b", False)
    told = signal(kubelet)
    assert told.body == (True,) and told.fields["path"] == LOGIN_PATH
    time.sleep(0.3)
    assert not bed.off.exists()
    os.close(held)
    wait_for(bed.off.exists, seconds=20)


def test_unreleased_delay_lock_times_out(bed: Bed) -> None:
    bed.logind.delay = 0.2
    client = bed.client()
    held = inhibit(client)
    client.call(LOGIN, LOGIN_PATH, MANAGER, "PowerOff", "b", False)
    wait_for(bed.off.exists, seconds=20)
    os.close(held)


@pytest.mark.parametrize(("what", "mode"), [("sleep", "delay"), ("shutdown", "block")])
def test_non_delay_locks_do_not_delay_shutdown(bed: Bed, what: str, mode: str) -> None:
    bed.logind.delay = 600
    client = bed.client()
    held = inhibit(client, what, mode)
    client.call(LOGIN, LOGIN_PATH, MANAGER, "PowerOff", "b", False)
    wait_for(bed.off.exists, seconds=20)
    os.close(held)


def test_lock_of_a_dead_client_is_released(bed: Bed) -> None:
    bed.logind.delay = 600
    client = bed.client()
    os.close(inhibit(client))
    client.socket.close()
    bed.client().call(LOGIN, LOGIN_PATH, MANAGER, "PowerOff", "b", False)
    wait_for(bed.off.exists, seconds=20)


def test_unsupported_method_is_refused_by_name(bed: Bed) -> None:
    with pytest.raises(logind.ProtocolError, match=r"no .*ListSessions"):
        bed.client().call(LOGIN, LOGIN_PATH, MANAGER, "ListSessions")


@pytest.mark.parametrize("data", [b"", b"l" * 15, b"B" + bytes(15), b"l\1\0\1\xff\xff\xff\xff" + bytes(8)])
def test_invalid_message_is_refused(data: bytes) -> None:
    with pytest.raises((logind.ProtocolError, logind.struct.error)):
        logind.decoded(data[: logind.size_of(data)])
