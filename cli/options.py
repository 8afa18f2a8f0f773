"""`options`: lists the global flags."""

from __future__ import annotations

import click

from cli.commands import command
from cli.settings import OPTIONS, CliSettings


@command("options", short_help="List the global flags.")
def options(settings: CliSettings) -> None:
    """List the global flags."""
    context = click.get_current_context()
    formatter = context.make_formatter()
    with formatter.section("Global flags"):
        formatter.write_dl([record for option in OPTIONS if (record := option.get_help_record(context))])
    click.echo(formatter.getvalue().rstrip())
