"""`options`: the flags that all commands have."""

from __future__ import annotations

import click

from cli.commands import command
from cli.settings import OPTIONS, CliSettings


@command("options", short_help="List the flags that all commands have.")
def options(settings: CliSettings) -> None:
    """List the flags that all commands have."""
    context = click.get_current_context()
    formatter = context.make_formatter()
    with formatter.section("Flags of all commands"):
        formatter.write_dl([record for option in OPTIONS if (record := option.get_help_record(context))])
    click.echo(formatter.getvalue().rstrip())
