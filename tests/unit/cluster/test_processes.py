"""Process records, with real processes: recognition and killing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import processes
from cluster.processes import ProcessRecord, ProcessRecords


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_start_time_is_parsed_after_a_name_with_spaces_and_brackets() -> None:
    text = "42 (a) (b c)) S 7 42 42 0 -1 4194560 98 0 0 0 1 2 0 0 20 0 1 0 987654 3000000 250 1844\n"
    assert processes.parse_stat(text) == ("S", 7, 987654)


def test_running_process_is_recognised(sleeper: subprocess.Popen[bytes]) -> None:
    rec = processes.record("sleeper", sleeper.pid)
    assert processes.is_alive(rec)
    assert processes.age(rec) >= 0
    assert processes.pss([sleeper.pid]) > 0


def test_a_reused_pid_is_neither_recognised_nor_killed(sleeper: subprocess.Popen[bytes]) -> None:
    rec = processes.record("sleeper", sleeper.pid)
    former = replace(rec, start_ticks=rec.start_ticks - 1)
    assert not processes.is_alive(former)
    processes.kill([former])
    assert sleeper.poll() is None


def test_kill_ends_process_and_zombie_counts_as_ended(sleeper: subprocess.Popen[bytes]) -> None:
    rec = processes.record("sleeper", sleeper.pid)
    processes.kill([rec])
    assert not processes.is_alive(rec)
    processes.kill([rec])


def test_terminate_falls_back_to_kill() -> None:
    process = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; while :; do sleep 600; done"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    rec = processes.record("stubborn", process.pid)
    child = processes.wait_until(lambda: processes.first_child(process.pid) is not None, 5)
    assert child
    inner = processes.record("sleep", processes.first_child(process.pid) or 0)
    processes.terminate([rec], patience=0.05)
    assert not processes.is_alive(rec)
    processes.kill([inner])
    process.wait()


def test_spawned_process_has_its_own_session_and_a_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "echo.log"
    pid = processes.spawn(["sh", "-c", "cut -d' ' -f6 /proc/self/stat; echo $$; echo oops >&2; exec sleep 600"], log)
    rec = processes.record("echo", pid)
    assert processes.wait_until(lambda: log.read_text().count("\n") == 3, 5)
    session, own, words = log.read_text().split()
    assert (int(session), int(own), words) == (pid, pid, "oops")
    processes.kill([rec])


def test_records_are_read_back_and_deleted(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    records = ProcessRecords(tmp_path / "processes")
    rec = processes.record("sleeper", sleeper.pid)
    records.put(rec)
    assert ProcessRecords(tmp_path / "processes").get("sleeper") == rec
    assert records.alive("sleeper") == rec
    assert records.names() == ["sleeper"]
    records.put(ProcessRecord("sleeper", sleeper.pid, 1))
    assert records.alive("sleeper") is None
    records.drop("sleeper")
    records.drop("sleeper")
    assert records.get("sleeper") is None


def test_unreadable_record_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    (tmp_path / "y.json").write_text('{"pid": 1}')
    assert ProcessRecords(tmp_path).get("x") is None
    assert ProcessRecords(tmp_path).get("y") is None
