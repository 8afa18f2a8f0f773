"""`completion`: the shell's completion script, and completion of VM and VMI names from the API server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class, shell_complete

from cli.commands import PROGRAM, VARIABLE, command
from cli.problem import CliError
from cli.settings import CliSettings

if TYPE_CHECKING:
    from cli.commands import Lazy

SHELLS = ("bash", "zsh", "fish")
TIMEOUT = "2s"
"""Timeout of requests for shell completion."""


@command("completion", short_help="Print the completion script of a shell.")
@click.argument("shell", metavar="bash|zsh|fish")
def completion(settings: CliSettings, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Examples:
      source <(hyperctl completion bash)
      hyperctl completion zsh > "${fpath[1]}/_hyperctl"
      hyperctl completion fish > ~/.config/fish/completions/hyperctl.fish
    """
    from cli.app import application

    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        raise CliError(f"unsupported shell {shell!r}: use bash, zsh or fish")
    click.echo(kind(application(), {}, PROGRAM, VARIABLE).source())


def answer(group: Lazy) -> int:
    """Prints the completions requested by the shell through environment variables."""
    return shell_complete(group, {}, PROGRAM, VARIABLE, os.environ[VARIABLE])


def machines(resource: str, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Names with the prefix `incomplete`; empty on any error."""
    from dataclasses import replace

    from cli.client import ApiClient, run
    from cli.paths import object_path

    settings = ctx.obj if isinstance(ctx.obj, CliSettings) else CliSettings()

    async def ask() -> list[str]:
        async with ApiClient(replace(settings, request_timeout=TIMEOUT)) as client:
            listing = await client.get(object_path(resource, client.namespace))
            return [item["metadata"]["name"] for item in listing.get("items") or ()]

    try:
        return [CompletionItem(name) for name in run(ask()) if name.startswith(incomplete)]
    except (CliError, LookupError, TypeError):
        return []
