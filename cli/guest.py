"""`guestosinfo`, `userlist`, `fslist`: information from the guest agent."""

from __future__ import annotations

from typing import Any

from cli.commands import command, machine
from cli.output import format_option, show
from cli.paths import INSTANCES, machine_path
from cli.problem import CliError
from cli.settings import CliSettings


def _print_info(settings: CliSettings, name: str, verb: str, what: str, output: str) -> None:
    from cli.client import ApiClient, RequestRefused, run

    async def ask() -> dict[str, Any]:
        async with ApiClient(settings) as client:
            try:
                return await client.get(machine_path(INSTANCES, client.namespace, name, verb))
            except RequestRefused as refusal:
                raise CliError(f"cannot get the {what} of VirtualMachineInstance {name}: {refusal}") from refusal

    show(run(ask()), output)


@command("guestosinfo", short_help="Show the guest operating system.")
@machine("VMI")
@format_option("json")
def guestosinfo(settings: CliSettings, name: str, output: str) -> None:
    """Show the guest operating system, as reported by the guest agent."""
    _print_info(settings, name, "guestosinfo", "operating system", output)


@command("userlist", short_help="List the users logged in to a guest.")
@machine("VMI")
@format_option("json")
def userlist(settings: CliSettings, name: str, output: str) -> None:
    """List the users logged in to a guest, as reported by the guest agent."""
    _print_info(settings, name, "userlist", "users", output)


@command("fslist", short_help="List the file systems mounted in a guest.")
@machine("VMI")
@format_option("json")
def fslist(settings: CliSettings, name: str, output: str) -> None:
    """List the file systems mounted in a guest, as reported by the guest agent."""
    _print_info(settings, name, "filesystemlist", "file systems", output)
