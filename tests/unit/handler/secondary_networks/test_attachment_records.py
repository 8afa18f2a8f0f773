"""Attachment records on disk."""

import json
import stat
from pathlib import Path

import pytest

from api.network_attachments import Selection
from handler.secondary_networks.attachment_records import Attachment, AttachmentRecord, AttachmentRecords

UID = "8b4a9c1e-0000-4000-8000-000000000001"


def joined(interface: str = "net1") -> Attachment:
    wanted = Selection(namespace="web", name="dmz", interface=interface, mac="02:00:00:00:00:01", ips=("192.0.2.7",))
    return Attachment(selection=wanted, name="lan", version="0.3.1", plugins=[{"type": "cnv-bridge"}])


def record(*interfaces: str) -> AttachmentRecord:
    return AttachmentRecord(namespace="web", name="app", uid=UID, joined=[joined(each) for each in interfaces])


def test_record_round_trips(tmp_path: Path) -> None:
    AttachmentRecords(tmp_path / "a").keep(record("net1", "net2"))
    again = AttachmentRecords(tmp_path / "a")
    assert list(again) == [UID] and again.get(UID) == record("net1", "net2")
    assert again.get(UID).of("net2") == joined("net2")  # type: ignore[union-attr]


def test_record_is_readable_by_root_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o755)
    AttachmentRecords(tmp_path / "a").keep(record("net1"))
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert [stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "a").iterdir()] == [0o600]


def test_record_without_networks_is_deleted(tmp_path: Path) -> None:
    records = AttachmentRecords(tmp_path)
    records.keep(record("net1"))
    records.keep(record("net1").without("net1"))
    assert records.get(UID) is None and list(tmp_path.iterdir()) == []
    records.keep(record())


def test_damaged_record_does_not_hide_others(tmp_path: Path) -> None:
    AttachmentRecords(tmp_path).keep(record("net1"))
    (tmp_path / "torn.json").write_text('{"uid": "torn", "na')
    (tmp_path / "other.json").write_text(json.dumps({"uid": "../../etc/x", "namespace": "a", "name": "b"}))
    (tmp_path / "half.draft").write_text("{")
    assert list(AttachmentRecords(tmp_path)) == [UID]


def test_uid_with_path_is_rejected(tmp_path: Path) -> None:
    for uid in ("../x", "a/b", "", ".", "x" * 65):
        with pytest.raises(OSError, match="is not the UID of a pod"):
            AttachmentRecords(tmp_path).keep(AttachmentRecord(namespace="web", name="app", uid=uid, joined=[joined()]))


def test_having_replaces_the_interfaces_network() -> None:
    known = record("net1", "net2").having(joined("net1"))
    assert [each.selection.interface for each in known.joined] == ["net2", "net1"]
