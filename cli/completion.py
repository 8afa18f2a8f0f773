"""`completion`: a script for the shell; and names of machines, asked of the server while somebody presses tab."""

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
"""Patience with a server while a person waits for the tab key."""


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
        raise CliError(f"{shell!r} is no shell that this knows: bash, zsh or fish")
    click.echo(kind(application(), {}, PROGRAM, VARIABLE).source())


def answer(group: Lazy) -> int:
    """Answers the shell's question, which is in the environment."""
    return shell_complete(group, {}, PROGRAM, VARIABLE, os.environ[VARIABLE])


def machines(resource: str, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """The names that begin so; none where the server does not say."""
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
