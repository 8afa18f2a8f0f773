"""Launcher reports are validated and bounded."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.schema.codec import to_dict
from handler.launchers import reports
from protos import launcher_pb2 as pb
from protos import limits


def test_valid_report_is_unchanged():
    report = pb.Report(state=pb.DOMAIN_STATE_RUNNING, reason="Booted", accelerator="kvm", machine="pc-q35-10.0")
    report.agent_connected = True
    report.disks.add(volume="root", target="vda", size=1 << 30)
    report.guest.os.pretty_name = "Debian GNU/Linux 13 (trixie)"
    report.guest.interfaces.add(
        name="eth0", mac="52:54:00:AA:bb:01", addresses=["10.0.2.2/24", "fe80::1/64", "127.0.0.1/8"]
    )
    state = reports.check(report)
    assert state.runs and not state.ended and state.agent
    assert (state.accelerator, state.machine) == ("kvm", "pc-q35-10.0")
    assert state.disks == (reports.ReportedDisk("root", "vda", 1 << 30),)
    assert state.os == reports.GuestOs(prettyName="Debian GNU/Linux 13 (trixie)")
    assert [to_dict(interface) for interface in state.interfaces] == [
        {
            "interfaceName": "eth0", "mac": "52:54:00:aa:bb:01", "infoSource": "guest-agent",
            "ipAddress": "10.0.2.2", "ipAddresses": ["10.0.2.2", "fe80::1"],
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value", ["a\nb", "a\x1b[2Jb", "a\u202eb", "a\x00b", "a\x85b", "a\u2028b"]
)  # line breaks, terminal sequences, text that runs backwards
def test_control_characters_are_removed(value):
    clean = reports.text(value)
    assert all(character.isprintable() for character in clean) and clean.startswith("a") and clean.endswith("b")


@pytest.mark.parametrize(
    ("field", "value"),
    [("reason", "no spaces"), ("reason", "x" * 65), ("accelerator", "hvf"), ("machine", "$(x)"), ("machine", "a\nb")],
)
def test_malformed_fields_are_dropped(field, value):
    report = pb.Report(**{field: value})
    assert getattr(reports.check(report), field) == ""


@pytest.mark.parametrize(
    "disk", [{"volume": "../x", "target": "vda"}, {"volume": "root", "target": "v d"}, {"volume": "", "target": ""}]
)
def test_malformed_disks_are_dropped(disk):
    assert reports.check(pb.Report(disks=[pb.DiskInfo(**disk)])).disks == ()


def test_lists_are_truncated():
    report = pb.Report(message="m" * 100_000)
    for number in range(5000):
        report.guest.interfaces.add(name=f"e{number}", mac="", addresses=["10.0.0.1/8"] * 40)
        report.disks.add(volume=f"v{number}", target="vda", size=2**64 - 1)
    state = reports.check(report)
    assert len(state.interfaces) == reports.MAX_INTERFACES and len(state.disks) == reports.MAX_DISKS
    assert all(len(interface.ipAddresses or ()) <= reports.MAX_ADDRESSES for interface in state.interfaces)
    assert all(disk.size <= 2**63 - 1 for disk in state.disks)
    assert len(state.message) == limits.REASON_BYTES


def test_unknown_state_is_none():
    report = pb.Report()
    report.ParseFromString(b"\x18\x63")  # field 3, value 99: proto3 keeps numbers that the enum has not
    assert reports.check(report).state == pb.DOMAIN_STATE_NONE


@settings(max_examples=200)
@given(st.text(max_size=600), st.text(max_size=600), st.lists(st.text(max_size=80), max_size=30))
def test_any_text_is_bounded(name, value, addresses):
    report = pb.Report(message=value, vmi_uid=name, machine=name, reason=value)
    report.guest.os.name = value
    report.guest.interfaces.add(name=name, mac=value, addresses=addresses)
    state = reports.check(report)
    assert len(state.os.name or "") <= limits.STRING_BYTES and len(state.vmi_uid) <= 64
    assert set(state.machine) <= set(string.ascii_letters + string.digits + "._-")
    for interface in state.interfaces:
        assert (interface.interfaceName or "").isprintable()
        assert len(interface.ipAddresses or ()) <= reports.MAX_ADDRESSES
