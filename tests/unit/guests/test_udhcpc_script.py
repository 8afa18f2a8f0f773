"""The guest's DHCP script, run with a fake `ip` that records its arguments."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from guests.initramfs import ROOTFS

LEASE = {"interface": "eth1", "ip": "10.1.2.3", "mask": "24"}


@pytest.fixture
def run(tmp_path: Path):  # type: ignore[no-untyped-def]
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("ip", "hostname"):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n')
        tool.chmod(0o755)
    (tmp_path / "net").mkdir()

    def call(event: str, **lease: str) -> list[str]:
        environment = {
            **LEASE, **lease, "PATH": f"{tools}:/usr/bin:/bin",
            "GUEST_NET": f"{tmp_path}/net", "RESOLV_CONF": f"{tmp_path}/resolv",
        }  # fmt: skip
        # `kill` is a builtin of the shell: the function keeps it from waking this machine's PID 1.
        script = f"kill() {{ :; }}; set -- {event}; . {ROOTFS}/etc/udhcpc.sh"
        subprocess.run(["sh", "-c", script], env=environment, check=True)
        calls = tmp_path / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return lines

    return call


def test_address_route_and_mtu(run) -> None:  # type: ignore[no-untyped-def]
    assert run("bound", router="10.1.2.1", mtu="1400") == [
        "ip -4 addr flush dev eth1",
        "ip link set eth1 mtu 1400",
        "ip addr add 10.1.2.3/24 broadcast + dev eth1",
        "ip route replace 0.0.0.0/0 via 10.1.2.1 dev eth1 metric 101",
    ]


def test_classless_routes_override_the_router(run) -> None:  # type: ignore[no-untyped-def]
    calls = run(
        "bound", router="10.1.2.1", staticroutes="0.0.0.0/0 169.254.1.1 169.254.1.1/32 0.0.0.0 10.9.0.0/16 10.1.2.9"
    )
    assert [call for call in calls if "route" in call] == [
        "ip route replace 0.0.0.0/0 via 169.254.1.1 dev eth1 metric 101",
        "ip route replace 169.254.1.1/32 dev eth1 metric 101",
        "ip route replace 10.9.0.0/16 via 10.1.2.9 dev eth1 metric 101",
    ]


def test_resolv_conf_has_servers_of_all_nics_and_search_list(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run("bound", dns="10.0.0.10 10.0.0.11", search="ns.svc.cluster.local svc.cluster.local", domain="not.this")
    run("bound", interface="eth2", dns="10.9.9.9")
    assert (tmp_path / "resolv").read_text().splitlines() == [
        "search ns.svc.cluster.local svc.cluster.local", "nameserver 10.0.0.10", "nameserver 10.0.0.11",
        "nameserver 10.9.9.9",
    ]  # fmt: skip


def test_renewal_keeps_the_address(run) -> None:  # type: ignore[no-untyped-def]
    run("bound", router="10.1.2.1")
    assert run("renew", router="10.1.2.1") == ["ip route replace 0.0.0.0/0 via 10.1.2.1 dev eth1 metric 101"]
    assert "ip addr add 10.1.2.4/24 broadcast + dev eth1" in run("renew", ip="10.1.2.4")


def test_host_name_is_set_from_dhcp(run) -> None:  # type: ignore[no-untyped-def]
    assert "hostname web-1" in run("bound", hostname="web-1")
