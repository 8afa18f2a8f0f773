"""ssh and scp: the client's words, quoted so that nothing of them is taken for something else."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cli import ssh
from cli.settings import Settings
from cli.targets import login_of
from tests.unit.cli.conftest import Hyperctl
from tests.unit.cli.published import SUB, Published
from tests.unit.cli.window import ROOT


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ssh and an scp that write down their words."""
    log = tmp_path / "words"
    for name in ("ssh", "scp"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" > {log}\nexit ${{SSH_EXIT:-0}}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return log


def words_of(log: Path) -> list[str]:
    return log.read_text().splitlines()


def test_ssh_gets_the_clients_words(hyperctl: Hyperctl, client: Path) -> None:
    flags = ("-i", "/tmp/my key", "-p", "2222", "-t", "-o StrictHostKeyChecking=no", "--known-hosts=/k", "-c", "ls /")
    assert hyperctl("ssh", *flags, "me@vm/testvm").code == 0
    program, o, proxy, *rest = words_of(client)
    assert (program, o) == ("ssh", "-o")
    assert proxy.endswith("port-forward --stdio vm/testvm/default 2222")
    assert rest == [
        "-o", 'UserKnownHostsFile="/k"', "-o StrictHostKeyChecking=no", "-i", "/tmp/my key",
        "me@vm.testvm.default", "ls /",
    ]  # fmt: skip


def test_the_user_comes_from_the_flag_where_the_target_has_none(hyperctl: Hyperctl, client: Path) -> None:
    hyperctl("ssh", "-l", "you", "vmi/testvm/ns")
    assert words_of(client)[-1] == "you@vmi.testvm.ns"
    hyperctl("ssh", "-l", "you", "me@testvm", "--local-ssh=true")
    assert words_of(client)[-1] == "me@vmi.testvm.default"
    hyperctl("ssh", "vmi/testvm")
    assert words_of(client)[-1] == "vmi.testvm.default"


def test_the_exit_code_of_the_remote_command_is_passed_on(
    hyperctl: Hyperctl, client: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_EXIT", "42")
    assert hyperctl("ssh", "vmi/testvm", "-c", "exit 42") == (42, "", "")


def test_a_user_cannot_be_an_option(hyperctl: Hyperctl, client: Path) -> None:
    assert "begins with a dash" in hyperctl("ssh", "--", "-oProxyCommand=x@vmi/testvm").err
    assert "begins with a dash" in hyperctl("ssh", "--username=-oProxyCommand=x", "vmi/testvm").err
    assert not client.exists()


def test_scp_both_ways(hyperctl: Hyperctl, client: Path) -> None:
    assert hyperctl("scp", "-r", "--preserve", "-file", "me@vmi/testvm/ns:/tmp/x").code != 0
    assert hyperctl("scp", "-r", "--preserve", "--", "-file", "me@vmi/testvm/ns:/tmp/x").code == 0
    assert words_of(client)[-4:] == ["-r", "-p", "./-file", "me@vmi.testvm.ns:/tmp/x"]
    assert hyperctl("scp", "testvm:a:b", "/tmp/there").code == 0
    assert words_of(client)[-2:] == ["vmi.testvm.default:a:b", "/tmp/there"]


def test_scp_needs_one_guest(hyperctl: Hyperctl, client: Path) -> None:
    assert "one of source and destination" in hyperctl("scp", "a", "b").err
    assert "one of source and destination" in hyperctl("scp", "vmi/a:x", "vmi/b:y").err


def test_the_proxy_command_survives_ssh_and_the_shell() -> None:
    settings = Settings(namespace="x; touch /tmp/owned", token="100%h $(id)")
    option = ssh.proxy_command(settings, login_of("vmi/a/ns"), "default", 22, ["hyper ctl"])
    command = option.removeprefix("ProxyCommand=")
    assert "%" not in command.replace("%%", "")
    words = shlex.split(command.replace("%%", "%"))
    assert words == [
        "hyper ctl", "port-forward", "--stdio",
        "--namespace=x; touch /tmp/owned", "--token=100%h $(id)", "vmi/a/ns", "22",
    ]  # fmt: skip


def test_the_real_ssh_reaches_the_guest_through_it(server: Published, tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def listens(stream) -> None:  # type: ignore[no-untyped-def]
        heard.append((await stream.receive()).data)
        await stream.close()

    server.streams[f"{SUB}/virtualmachineinstances/testvm/portforward/22/tcp"] = listens
    done = subprocess.run(
        [sys.executable, "-m", "cli", "ssh", "me@vmi/testvm", f"--kubeconfig={server.kubeconfig(tmp_path)}"],
        cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert done.returncode == 255 and "Traceback" not in done.stderr, done.stderr
    assert heard[0].startswith(b"SSH-2.0-OpenSSH"), heard


def test_without_a_client(hyperctl: Hyperctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no ssh on this machine" in hyperctl("ssh", "vmi/testvm").err


def test_this_program_is_started_again_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/cli/__main__.py"])
    assert ssh.this_program() == [sys.executable, "-m", "cli"]
    monkeypatch.setattr(sys, "argv", ["/bin/sh"])
    assert ssh.this_program() == ["/bin/sh"]
