"""The tiny guest, booted for real: everything that other tests rely on."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from guests import tiny
from guests.disk import KERNEL_ARGS, screen_disk
from tests.node.guestlab import RunningGuest, boot_guest, seed_disk
from tests.waiting import wait_for

pytestmark = pytest.mark.node

USER_DATA = r"""#cloud-config
# a comment
hostname: "named-by-cloud-init"
password: s3cret  # for the default user
chpasswd:
  expire: False
  list: |
    root:toor
ssh_authorized_keys:
  - ssh-ed25519 AAAA someone@somewhere
write_files:
  - path: /etc/deep/er/file
    permissions: '0600'
    content: |
      first line
        <indented> & "quoted"
runcmd:
  - echo "$(cat /etc/deep/er/file)" | wc -l > /run/lines
  - [ sh, -c, 'test "$(cat /run/lines)" = 2' ]
  - exit 3
"""


@pytest.fixture(scope="module")
def guest() -> tiny.Guest:
    return tiny.build()


def kernel_boot(guest: tiny.Guest, args: str = KERNEL_ARGS) -> list[str]:
    return ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", args]


def drive(name: str, path: Path, serial: str, readonly: bool = False) -> list[str]:
    blockdev = f"driver=file,filename={path},node-name={name},read-only={'on' if readonly else 'off'}"
    return ["-blockdev", blockdev, "-device", f"virtio-blk-pci,drive={name},serial={serial}"]


@pytest.fixture(scope="module")
def running(guest: tiny.Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGuest]:
    """One guest with a seed and an empty data disk, for all tests that leave it running."""
    folder = tmp_path_factory.mktemp("guest")
    seed = seed_disk(folder / "seed.iso", user_data=USER_DATA, meta_data="instance-id: i\nlocal-hostname: meta\n")
    data = folder / "data.img"
    data.write_bytes(bytes(1024 * 1024))
    with boot_guest(
        folder, *kernel_boot(guest), *drive("seed", seed, "seed", readonly=True), *drive("data", data, "data-disk")
    ) as started:
        started.wait_ready()
        yield started


def test_guest_prints_ready_marker(running: RunningGuest) -> None:
    assert "hyperlet guest ready: named-by-cloud-init 10.0.2.15" in running.log()


def test_report_describes_network(running: RunningGuest) -> None:
    report = running.report()
    (card,) = report["interfaces"]
    assert card["name"] == "eth0"
    assert card["mac"] == "52:54:00:12:34:56"
    assert "10.0.2.15/24" in card["addresses"]
    assert report["search"] == ["one.example", "two.example"]
    assert len(report["bootId"]) == 36


def test_ipv6_address_is_configured_by_router_advertisements(running: RunningGuest) -> None:
    def routable() -> list[str]:
        addresses = running.report()["interfaces"][0]["addresses"]
        return [a for a in addresses if ":" in a and not a.startswith("fe80:")]

    assert wait_for(routable, "an IPv6 address")


def test_counter_increases(running: RunningGuest) -> None:
    first = running.report()["counter"]
    wait_for(lambda: running.report()["counter"] > first, "the counter grows")


def test_cloud_init_data_is_unchanged(running: RunningGuest) -> None:
    seed = running.report()["cloudInit"]
    assert seed["user-data"] == USER_DATA
    assert seed["meta-data"] == "instance-id: i\nlocal-hostname: meta\n"
    assert seed["source"] == "/dev/vda"
    assert "network-config" not in seed


def test_cloud_config_is_applied(running: RunningGuest) -> None:
    report = running.report()
    assert report["hostname"] == "named-by-cloud-init"
    assert report["cloudInit"]["applied"]["sshAuthorizedKeys"] == ["ssh-ed25519 AAAA someone@somewhere"]
    assert [each["exit"] for each in report["cloudInit"]["applied"]["commands"]] == [0, 0, 3]


def test_serial_login_accepts_cloud_init_password(running: RunningGuest) -> None:
    said = running.type(
        ("login: ", "tiny"), ("assword: ", "s3cret"), ("$ ", "echo I am $(id -un); echo '#' done"),
    )  # fmt: skip
    assert "I am tiny" in said


def test_data_disk_is_read_and_written_by_name_and_serial(running: RunningGuest) -> None:
    assert running.request("GET", "/disk/vdb")[0] == 404
    assert running.request("PUT", "/disk/data-disk", 'a "marker" ü') == (200, "written\n")
    assert running.request("GET", "/disk/vdb") == (200, 'a "marker" ü')
    assert running.request("GET", "/write?disk=vdb&data=second%20one")[0] == 200
    assert running.request("GET", "/read?disk=data-disk") == (200, "second one")
    assert b"second one" in (running.folder / "data.img").read_bytes()[:4096]


@pytest.mark.parametrize(
    ("path", "status"), [("/disk/vda", 409), ("/disk/nowhere", 404), ("/disk/..%2Fetc", 400), ("/disk/", 400)]
)
def test_other_disks_are_not_written(running: RunningGuest, path: str, status: int) -> None:
    assert running.request("PUT", path, "x")[0] == status


def test_unknown_paths_and_oversized_requests_are_refused(running: RunningGuest) -> None:
    assert running.request("GET", "/nothing")[0] == 404
    assert running.request("PUT", "/disk/vdb", "x" * 5000)[0] == 400
    assert running.request("PUT", "/disk/vdb", "x" * 20000)[0] == 413
    assert running.report()["hostname"] == "named-by-cloud-init"


def test_guest_agent_responds(running: RunningGuest) -> None:
    ping, name = running.ask("agent", "guest-ping", "guest-get-host-name")
    assert ping == {"return": {}}
    assert name == {"return": {"host-name": "named-by-cloud-init"}}


def test_power_button_shuts_guest_down(guest: tiny.Guest, tmp_path: Path) -> None:
    with boot_guest(tmp_path, *kernel_boot(guest)) as started:
        started.wait_ready()
        assert "ready: from-dhcp 10.0.2.15" in started.log()
        started.ask("qmp", "system_powerdown")
        assert started.ended() == 0
        assert "guest: shutting down (power button)" in started.log()
        assert "guest: powered off" in started.log()


def test_guest_agent_shuts_guest_down(guest: tiny.Guest, tmp_path: Path) -> None:
    with boot_guest(tmp_path, *kernel_boot(guest)) as started:
        started.wait_ready()
        started.ask("agent", "guest-ping")
        with pytest.raises(ValueError):  # the agent does not answer this one: the socket ends with the machine
            started.ask("agent", "guest-shutdown")
        assert started.ended() == 0
        assert "guest: shutting down (poweroff)" in started.log()


def test_guest_configured_to_ignore_power_button_keeps_running(guest: tiny.Guest, tmp_path: Path) -> None:
    with boot_guest(tmp_path, *kernel_boot(guest, f"{KERNEL_ARGS} guest.ignore-power-button")) as started:
        started.wait_ready()
        started.ask("qmp", "system_powerdown")
        wait_for(lambda: "guest: power button ignored" in started.log(), "the guest noticed")
        assert started.process.poll() is None
        started.request("POST", "/poweroff")
        assert started.ended() == 0


def test_disk_image_boots_without_kernel_argument(guest: tiny.Guest, tmp_path: Path) -> None:
    with boot_guest(tmp_path, *drive("boot", guest.raw, "boot", readonly=True)) as started:
        started.wait_ready()
        assert started.report()["disks"][0]["serial"] == "boot"


def test_large_screen_has_configured_size(tmp_path: Path) -> None:
    disk = tmp_path / "screen.img"
    disk.write_bytes(screen_disk())
    with boot_guest(
        tmp_path, *drive("boot", disk, "boot", readonly=True), "-vga", "std", "-vnc", f"unix:{tmp_path}/vnc"
    ):

        def size() -> tuple[int, int, int]:
            """Width, height and bits of a pixel, from ServerInit (RFC 6143, 7.3.2)."""
            with socket.socket(socket.AF_UNIX) as viewer:
                viewer.settimeout(10)
                viewer.connect(f"{tmp_path}/vnc")
                viewer.recv(12)
                for answer, length in ((b"RFB 003.008\n", 2), (b"\x01", 4), (b"\x01", 24)):
                    viewer.sendall(answer)
                    told = viewer.recv(length, socket.MSG_WAITALL)
                width, height, bits = struct.unpack(">HHB", told[:5])
            return width, height, bits

        wait_for(lambda: size() == (1600, 1200, 32), "the screen is large")


@pytest.mark.parametrize(
    "user_data",
    ["#cloud-config\nruncmd: [\n - - -\n\t: |\n", "#cloud-config\n" + "x" * 70000, "#!/bin/sh\nexit 7\n", "\x00\x01"],
)
def test_invalid_user_data_does_not_prevent_boot(guest: tiny.Guest, tmp_path: Path, user_data: str) -> None:
    seed = seed_disk(tmp_path / "seed.iso", user_data=user_data, meta_data="instance-id: i\n")
    with boot_guest(tmp_path, *kernel_boot(guest), *drive("seed", seed, "seed", readonly=True)) as started:
        started.wait_ready()
        assert started.report()["hostname"] == "from-dhcp"
