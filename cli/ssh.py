"""`ssh` and `scp`: this machine's own OpenSSH, with a port-forward for its way to the guest.

Source of the words: ssh(1), ssh_config(5) (ProxyCommand and its percent signs).
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
    """The flags that ssh and scp share."""

    username: str | None
    identity_file: str | None
    known_hosts: str | None
    port: int
    local_ssh_opts: tuple[str, ...]


def ssh_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Those flags, named as virtctl's."""
    for option in (
        click.option("--local-ssh", is_flag=True, hidden=True, default=True, help="What is always done."),
        click.option("--local-ssh-opts", "-t", multiple=True, metavar="OPTION", help="One more word for the client."),
        click.option(
            "--port", "-p", type=click.IntRange(1, 65535), default=22, show_default=True, help="The guest's SSH port."
        ),
        click.option("--known-hosts", metavar="FILE", help="Instead of the client's own list of known hosts."),
        click.option(
            "--identity-file", "-i", metavar="FILE", help="The private key; else the client's own, or its agent."
        ),
        click.option("--username", "-l", metavar="USER", help="Whom to be in the guest; else whom the client says."),
    ):
        function = option(function)
    return function


def this_program() -> list[str]:
    """The words that start hyperctl again."""
    path = sys.argv[0]
    if path.endswith("__main__.py"):
        return [sys.executable, "-m", "cli"]
    return [str(Path(shutil.which(path) or path).absolute())]


def proxy_command(settings: CliSettings, login: Login, namespace: str, port: int, program: Sequence[str]) -> str:
    """How ssh gets at the guest's port. ssh expands percent signs and has a shell run it: both are quoted away."""
    words = [*program, "port-forward", "--stdio", *settings.words(), login.target.words(namespace), str(port)]
    return f"ProxyCommand={shlex.join(words).replace('%', '%%')}"


def client_words(settings: CliSettings, login: Login, namespace: str, options: SshOptions) -> list[str]:
    """The options of ssh or scp, up to the host."""
    words = ["-o", proxy_command(settings, login, namespace, options.port, this_program())]
    if options.known_hosts:
        words += ["-o", f'UserKnownHostsFile="{options.known_hosts}"']
    words += options.local_ssh_opts
    return [*words, *(["-i", options.identity_file] if options.identity_file else [])]


def place(login: Login, namespace: str, username: str | None) -> str:
    """`user@host` for the client; a host that begins with a dash would be read as an option."""
    user = login.user or username
    host = login.target.host(namespace)
    words = f"{user}@{host}" if user else host
    if words.startswith("-"):
        raise CliError(f"{words!r} cannot be a user: it begins with a dash")
    return words


def namespace_of(settings: CliSettings, login: Login) -> str:
    """The machine's namespace, or that of the flags or the kubeconfig."""
    from kit import kubeconfig

    try:
        return login.target.namespace or kubeconfig.load(settings.choice()).namespace
    except kubeconfig.ConfigError as error:
        raise CliError(str(error)) from error


def _run(program: str, words: Sequence[str], settings: CliSettings) -> None:
    if shutil.which(program) is None:
        raise CliError(f"there is no {program} on this machine: install OpenSSH's client")
    if settings.verbosity >= 3:
        print(shlex.join([program, *words]), file=sys.stderr)
    code = subprocess.run([program, *words], check=False).returncode
    if code:
        # ssh has told why; a command's own exit code is passed on.
        raise click.exceptions.Exit(code if code > 0 else 128 - code)


@command("ssh", short_help="Log in to a guest by SSH.")
@click.argument("target", metavar="[USER@]TYPE/NAME[/NAMESPACE]")
@ssh_options
@click.option("--command", "-c", "remote", metavar="COMMAND", help="Run this in the guest instead of a shell.")
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
    """Log in to a guest by SSH, through the API server, with the ssh of this machine.

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
    """`[user@]type/name[/namespace]:path` in its parts; None for a local path: one that exists, or has no colon."""
    machine, colon, path = text.partition(":")
    if not colon or machine.startswith((".", "/")) or Path(text).exists():
        return None
    return login_of(machine), path


@command("scp", short_help="Copy files to or from a guest.")
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="DESTINATION")
@ssh_options
@click.option("--recursive", "-r", is_flag=True, help="Whole folders.")
@click.option("--preserve", is_flag=True, help="Keep times and modes.")
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
    """Copy files to or from a guest by SSH, with the scp of this machine.

    \b
    Examples:
      hyperctl scp myfile.bin jdoe@vmi/myvmi:myfile.bin
      hyperctl scp --recursive jdoe@vm/myvm/mynamespace:/etc ./etc
    """
    from_guest, to_guest = remote_of(source), remote_of(destination)
    if (from_guest is None) == (to_guest is None):
        raise CliError("one of source and destination is in a guest: write [user@]vmi/name:path")
    login, path = from_guest or to_guest or (login_of(source), "")
    namespace = namespace_of(settings, login)
    options = SshOptions(username, identity_file, known_hosts, port, local_ssh_opts)
    flags = [*(["-r"] if recursive else []), *(["-p"] if preserve else [])]
    guest = f"{place(login, namespace, username)}:{path}"
    ends = [guest, _local(destination)] if from_guest else [_local(source), guest]
    _run("scp", [*client_words(settings, login, namespace, options), *flags, *ends], settings)


def _local(path: str) -> str:
    """A path that scp does not take for a host or an option."""
    return path if os.path.isabs(path) else os.path.join(".", path)  # noqa: PTH117, PTH118
