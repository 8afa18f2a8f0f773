"""`ssh` and `scp`: run the local OpenSSH client with hyperctl port-forward as ProxyCommand.

Source: ssh(1), ssh_config(5) (ProxyCommand and its percent tokens).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cli.commands import command
from cli.problem import CliError
from cli.settings import CliSettings
from cli.targets import Login, login_of


@dataclass(frozen=True)
class SshOptions:
    """The flags common to ssh and scp."""

    username: str | None
    identity_file: str | None
    known_hosts: str | None
    port: int
    local_ssh_opts: tuple[str, ...]


def ssh_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the common flags, named like virtctl's."""
    for option in (
        click.option("--local-ssh", is_flag=True, hidden=True, default=True, help="No effect: always the case."),
        click.option(
            "--local-ssh-opts", "-t", multiple=True, metavar="OPTION", help="Additional option for the SSH client."
        ),
        click.option(
            "--port", "-p", type=click.IntRange(1, 65535), default=22, show_default=True, help="SSH port of the guest."
        ),
        click.option("--known-hosts", metavar="FILE", help="known_hosts file; by default the client's."),
        click.option(
            "--identity-file", "-i", metavar="FILE", help="Private key; by default the client's or the agent's."
        ),
        click.option("--username", "-l", metavar="USER", help="User in the guest; by default the client's."),
    ):
        function = option(function)
    return function


def this_program() -> list[str]:
    """The command that starts hyperctl."""
    path = sys.argv[0]
    if path.endswith("__main__.py"):
        return [sys.executable, "-m", "cli"]
    return [str(Path(shutil.which(path) or path).absolute())]


def proxy_command(settings: CliSettings, login: Login, namespace: str, port: int, program: Sequence[str]) -> str:
    """The ProxyCommand option. Quoted for ssh, which expands percent signs, and for the shell that runs it."""
    words = [*program, "port-forward", "--stdio", *settings.words(), login.target.words(namespace), str(port)]
    return f"ProxyCommand={shlex.join(words).replace('%', '%%')}"


def client_words(settings: CliSettings, login: Login, namespace: str, options: SshOptions) -> list[str]:
    """The arguments of ssh or scp in front of the host."""
    words = ["-o", proxy_command(settings, login, namespace, options.port, this_program())]
    if options.known_hosts:
        words += ["-o", f'UserKnownHostsFile="{options.known_hosts}"']
    words += options.local_ssh_opts
    return [*words, *(["-i", options.identity_file] if options.identity_file else [])]


def place(login: Login, namespace: str, username: str | None) -> str:
    """`user@host` for the client. Raises CliError for a leading dash, which would be parsed as an option."""
    user = login.user or username
    host = login.target.host(namespace)
    words = f"{user}@{host}" if user else host
    if words.startswith("-"):
        raise CliError(f"invalid user {words!r}: must not start with a dash")
    return words


def namespace_of(settings: CliSettings, login: Login) -> str:
    """The namespace of the target, else of the flags, else of the kubeconfig."""
    from kit import kubeconfig

    try:
        return login.target.namespace or kubeconfig.load(settings.choice()).namespace
    except kubeconfig.ConfigError as error:
        raise CliError(str(error)) from error


def _run(program: str, words: Sequence[str], settings: CliSettings) -> None:
    if shutil.which(program) is None:
        raise CliError(f"{program} not found in PATH: install the OpenSSH client")
    if settings.verbosity >= 3:
        print(shlex.join([program, *words]), file=sys.stderr)
    code = subprocess.run([program, *words], check=False).returncode
    if code:
        # ssh has printed the reason; pass the exit code of the remote command on.
        raise click.exceptions.Exit(code if code > 0 else 128 - code)


@command("ssh", short_help="Open an SSH session in a guest.")
@click.argument("target", metavar="[USER@]TYPE/NAME[/NAMESPACE]")
@ssh_options
@click.option("--command", "-c", "remote", metavar="COMMAND", help="Command to run in the guest instead of a shell.")
def ssh(
    settings: CliSettings,
    target: str,
    username: str | None,
    identity_file: str | None,
    known_hosts: str | None,
    port: int,
    local_ssh_opts: tuple[str, ...],
    local_ssh: bool,
    remote: str | None,
) -> None:
    """Open an SSH session in a guest through the API server, with the local ssh.

    \b
    Examples:
      hyperctl ssh jdoe@vmi/myvmi
      hyperctl ssh jdoe@vm/myvm/mynamespace -i ~/.ssh/id_ed25519
      hyperctl ssh -l jdoe -c 'ls /' -t '-o StrictHostKeyChecking=no' vmi/myvmi
    """
    login = login_of(target)
    namespace = namespace_of(settings, login)
    options = SshOptions(username, identity_file, known_hosts, port, local_ssh_opts)
    words = [*client_words(settings, login, namespace, options), place(login, namespace, username)]
    _run("ssh", [*words, remote] if remote else words, settings)


def remote_of(text: str) -> tuple[Login, str] | None:
    """Parses `[user@]type/name[/namespace]:path`. None for a local path: one that exists, or has no colon."""
    machine, colon, path = text.partition(":")
    if not colon or machine.startswith((".", "/")) or Path(text).exists():
        return None
    return login_of(machine), path


@command("scp", short_help="Copy files to or from a guest.")
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="DESTINATION")
@ssh_options
@click.option("--recursive", "-r", is_flag=True, help="Copy directories recursively.")
@click.option("--preserve", is_flag=True, help="Preserve times and modes.")
def scp(
    settings: CliSettings,
    source: str,
    destination: str,
    username: str | None,
    identity_file: str | None,
    known_hosts: str | None,
    port: int,
    local_ssh_opts: tuple[str, ...],
    local_ssh: bool,
    recursive: bool,
    preserve: bool,
) -> None:
    """Copy files to or from a guest over SSH, with the local scp.

    \b
    Examples:
      hyperctl scp myfile.bin jdoe@vmi/myvmi:myfile.bin
      hyperctl scp --recursive jdoe@vm/myvm/mynamespace:/etc ./etc
    """
    from_guest, to_guest = remote_of(source), remote_of(destination)
    if (from_guest is None) == (to_guest is None):
        raise CliError("exactly one of source and destination must be in a guest: [user@]vmi/name:path")
    login, path = from_guest or to_guest or (login_of(source), "")
    namespace = namespace_of(settings, login)
    options = SshOptions(username, identity_file, known_hosts, port, local_ssh_opts)
    flags = [*(["-r"] if recursive else []), *(["-p"] if preserve else [])]
    guest = f"{place(login, namespace, username)}:{path}"
    ends = [guest, _local(destination)] if from_guest else [_local(source), guest]
    _run("scp", [*client_words(settings, login, namespace, options), *flags, *ends], settings)


def _local(path: str) -> str:
    """A path that scp cannot mistake for a host or an option."""
    return path if os.path.isabs(path) else os.path.join(".", path)  # noqa: PTH117, PTH118
