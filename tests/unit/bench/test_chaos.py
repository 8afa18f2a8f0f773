"""The chaos run: the same seed makes the same actions, every action comes up, and two QEMUs are never called one."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from bench.chaos import ACTIONS, Chaos, Watcher, _each_handler, chosen, qemus, table


def test_same_seed_yields_same_actions() -> None:
    assert chosen(random.Random(7), 200) == chosen(random.Random(7), 200)
    assert chosen(random.Random(7), 200) != chosen(random.Random(8), 200)


@pytest.mark.parametrize("count", [1, 5, len(ACTIONS), 200])
def test_number_of_actions_is_exact_and_includes_each_action(count: int) -> None:
    found = chosen(random.Random(1), count)
    assert len(found) == count
    assert count < len(ACTIONS) or set(found) == set(ACTIONS)


def test_every_action_is_a_method_with_title() -> None:
    for name in ACTIONS:
        assert getattr(Chaos, name).__doc__


def test_script_that_stops_handlers_does_not_stop_itself() -> None:
    assert "-m handler " not in _each_handler("STOP")


def process(proc: Path, pid: int, comm: str, *words: str) -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "comm").write_text(comm + "\n")
    (proc / str(pid) / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))


def test_only_qemus_of_the_vm_are_counted(tmp_path: Path) -> None:
    process(tmp_path, 1, "qemu-system-x86", "qemu", "-name", "guest=ns_chaos,debug-threads=on")
    process(tmp_path, 2, "qemu-system-x86", "qemu", "-name", "guest=ns_chaos-2,debug-threads=on")
    process(tmp_path, 3, "qemu-system-x86", "qemu", "-name", "guest=other_chaos")
    process(tmp_path, 4, "libvirtd", "libvirtd", "guest=ns_chaos")
    process(tmp_path, 5, "qemu-system-x86")  # has ended, and nobody has asked how
    process(tmp_path, 6, "qemu-system-x86", "qemu", "-name", "guest=ns_chaos")
    assert qemus(b"guest=ns_chaos", tmp_path) == [1, 6]


def test_two_copies_are_reported_in_table() -> None:
    watcher = Watcher(
        b"x", samples=Counter({0: 10, 1: 85, 2: 5}), starts={1, 2}, doubles=["12:00 pids [1, 2], after: x"]
    )
    words = table(watcher, Counter({"force_pod": 3}), True)
    assert "kubectl delete pod --force" in words and "0 in 10.0%, 1 in 85.0%, 2 in 5.0%" in words
    assert "TWO COPIES: 12:00 pids [1, 2], after: x" in words
    assert "TWO COPIES" not in table(Watcher(b"x", samples=Counter({1: 1})), Counter(), True)
