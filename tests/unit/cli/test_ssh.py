"""ssh and scp: arguments of the client, and their quoting."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest
from aiohttp import web

from cli import ssh
from cli.settings import CliSettings
from cli.targets import login_of
from tests.unit.cli.conftest import Hyperctl
from tests.unit.cli.published import SUB, Published, Stream
from tests.unit.cli.window import PATIENCE, ROOT


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake ssh and scp that record their arguments."""
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


def test_ssh_arguments(hyperctl: Hyperctl, client: Path) -> None:
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
    assert "must not start with a dash" in hyperctl("ssh", "--", "-oProxyCommand=x@vmi/testvm").err
    assert "must not start with a dash" in hyperctl("ssh", "--username=-oProxyCommand=x", "vmi/testvm").err
    assert not client.exists()


def test_scp_arguments_in_both_directions(hyperctl: Hyperctl, client: Path) -> None:
    assert hyperctl("scp", "-r", "--preserve", "-file", "me@vmi/testvm/ns:/tmp/x").code != 0
    assert hyperctl("scp", "-r", "--preserve", "--", "-file", "me@vmi/testvm/ns:/tmp/x").code == 0
    assert words_of(client)[-4:] == ["-r", "-p", "./-file", "me@vmi.testvm.ns:/tmp/x"]
    assert hyperctl("scp", "testvm:a:b", "/tmp/there").code == 0
    assert words_of(client)[-2:] == ["vmi.testvm.default:a:b", "/tmp/there"]


def test_scp_requires_exactly_one_guest(hyperctl: Hyperctl, client: Path) -> None:
    assert "one of source and destination" in hyperctl("scp", "a", "b").err
    assert "one of source and destination" in hyperctl("scp", "vmi/a:x", "vmi/b:y").err


def test_proxy_command_is_quoted_for_ssh_and_shell() -> None:
    settings = CliSettings(namespace="x; touch /tmp/owned", token="100%h $(id)")
    option = ssh.proxy_command(settings, login_of("vmi/a/ns"), "default", 22, ["hyper ctl"])
    command = option.removeprefix("ProxyCommand=")
    assert "%" not in command.replace("%%", "")
    words = shlex.split(command.replace("%%", "%"))
    assert words == [
        "hyper ctl", "port-forward", "--stdio",
        "--namespace=x; touch /tmp/owned", "--token=100%h $(id)", "vmi/a/ns", "22",
    ]  # fmt: skip


def relay(port: int) -> Stream:
    """A stream to a local TCP port, like the gateway's to a guest."""

    async def carry(socket: web.WebSocketResponse) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def answers() -> None:
            while data := await reader.read(65536):
                await socket.send_bytes(data)
            await socket.close()

        task = asyncio.create_task(answers())
        async for message in socket:
            writer.write(message.data)
            await writer.drain()
        task.cancel()
        writer.close()

    return carry


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[int]:
    """An SSH server with one authorized key; echoes commands and accepts files. Yields its port."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "id")
    (tmp_path / "id").chmod(0o600)
    key.write_public_key(tmp_path / "authorized")

    async def session(process: asyncssh.SSHServerProcess[str]) -> None:
        process.stdout.write(f"{process.get_extra_info('username')} ran {process.command}\n")
        process.exit(7)

    async with asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        authorized_client_keys=str(tmp_path / "authorized"), process_factory=session, sftp_factory=True, allow_scp=True,
    ) as listening:  # fmt: skip
        yield listening.get_port()


async def finished(config: Path, *words: str) -> tuple[int, str, str]:
    """hyperctl with the real OpenSSH."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", *words, f"--kubeconfig={config}", cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 3 * PATIENCE)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_real_ssh_runs_a_command_in_the_guest(server: Published, guest: int, tmp_path: Path) -> None:
    server.streams[f"{SUB}/virtualmachineinstances/testvm/portforward/22/tcp"] = relay(guest)
    config = server.kubeconfig(tmp_path)
    flags = (
        "-i",
        str(tmp_path / "id"),
        f"--known-hosts={tmp_path / 'known'}",
        "-t",
        "-oStrictHostKeyChecking=accept-new",
        "-t",
        "-oHashKnownHosts=no",
    )
    code, out, err = await finished(config, "ssh", *flags, "me@vmi/testvm", "-c", "uname -a")
    assert (code, out) == (7, "me ran uname -a\n"), err
    assert (tmp_path / "known").read_text().startswith("vmi.testvm.default ssh-ed25519 ")


async def test_the_real_scp_copies_both_ways(server: Published, guest: int, tmp_path: Path) -> None:
    server.streams[f"{SUB}/virtualmachines/testvm/portforward/22/tcp"] = relay(guest)
    config = server.kubeconfig(tmp_path)
    flags = (
        "-i",
        str(tmp_path / "id"),
        f"--known-hosts={tmp_path / 'known'}",
        "-t",
        "-oStrictHostKeyChecking=accept-new",
        "-t",
        "-oLogLevel=ERROR",
        "-t",
        "-O",  # asyncssh tells no exit code of the other protocol
    )
    content = os.urandom(200_000)
    (tmp_path / "here").write_bytes(content)
    remote = f"me@vm/testvm:{tmp_path / 'there'}"
    assert await finished(config, "scp", *flags, str(tmp_path / "here"), remote) == (0, "", "")
    assert (tmp_path / "there").read_bytes() == content
    assert await finished(config, "scp", *flags, remote, str(tmp_path / "back")) == (0, "", "")
    assert (tmp_path / "back").read_bytes() == content


async def test_host_key_error_is_printed_by_ssh(server: Published, guest: int, tmp_path: Path) -> None:
    server.streams[f"{SUB}/virtualmachineinstances/testvm/portforward/22/tcp"] = relay(guest)
    flags = (f"--known-hosts={tmp_path / 'known'}", "-t", "-oStrictHostKeyChecking=yes")
    code, _, err = await finished(server.kubeconfig(tmp_path), "ssh", *flags, "me@vmi/testvm")
    assert code == 255 and "Host key verification failed" in err and "Traceback" not in err


def test_missing_ssh_client_is_reported(hyperctl: Hyperctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "ssh not found in PATH" in hyperctl("ssh", "vmi/testvm").err


def test_proxy_command_starts_the_same_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/cli/__main__.py"])
    assert ssh.this_program() == [sys.executable, "-m", "cli"]
    monkeypatch.setattr(sys, "argv", ["/bin/sh"])
    assert ssh.this_program() == ["/bin/sh"]
