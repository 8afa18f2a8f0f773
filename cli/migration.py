"""`migrate` and `migrate-cancel`."""

from __future__ import annotations

import click

from cli.commands import command, machine
from cli.paths import MACHINES, MIGRATIONS, object_path
from cli.problem import CliError
from cli.settings import CliSettings
from cli.verbs import ask, dry_run_option, options_of

_FINAL = {"Succeeded", "Failed"}


def selector_of(words: tuple[str, ...]) -> dict[str, str] | None:
    """Parses `a=1,b=2`, repeatable. Raises CliError."""
    pairs = [pair.partition("=") for word in words for pair in word.split(",")]
    for key, equals, value in pairs:
        if not key or not equals:
            raise CliError(f"--addedNodeSelector must be key=value,…, not {key + equals + value!r}")
    return {key: value for key, _, value in pairs} or None


@command("migrate", short_help="Migrate a running VM to another node.")
@machine("VM")
@click.option(
    "--addedNodeSelector",
    "selector",
    multiple=True,
    metavar="KEY=VALUE,…",
    help="Labels that the target node must have.",
)
@dry_run_option
def migrate(settings: CliSettings, name: str, selector: tuple[str, ...], dry_run: bool) -> None:
    """Migrate a running VM to another node.

    \b
    Example:
      hyperctl migrate myvm
    """
    body = options_of(dry_run, addedNodeSelector=selector_of(selector))
    ask(settings, MACHINES, name, "migrate", body, f"migrate VirtualMachine {name}")
    click.echo(f"VM {name} was scheduled to migrate")


@command("migrate-cancel", short_help="Cancel a migration.")
@machine("VM")
@dry_run_option
def migrate_cancel(settings: CliSettings, name: str, dry_run: bool) -> None:
    """Cancel the migration of a VM; it stays on its node.

    \b
    Example:
      hyperctl migrate-cancel myvm
    """
    from cli.client import ApiClient, run

    async def cancel() -> None:
        async with ApiClient(settings) as client:
            listing = await client.get(object_path(MIGRATIONS, client.namespace))
            active = [
                item["metadata"]["name"]
                for item in listing.get("items") or ()
                if (item.get("spec") or {}).get("vmiName") == name
                and (item.get("status") or {}).get("phase") not in _FINAL
            ]
            if not active:
                raise CliError(f"VirtualMachine {name} has no migration to cancel")
            for migration in active:
                await client.delete(object_path(MIGRATIONS, client.namespace, migration), options_of(dry_run))

    run(cancel())
    click.echo(f"VM {name} was scheduled to migrate-cancel")
