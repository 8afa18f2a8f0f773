"""`start`, `stop`, `restart`, `pause`, `unpause`, `soft-reboot` and `reset`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from api.k8s.meta import Json
from cli.commands import command, machine
from cli.paths import INSTANCES, MACHINES, machine_path, object_path, resource_of
from cli.problem import CliError
from cli.settings import CliSettings
from cli.wait import wait_option

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Validate the request on the server without executing it."
)


def options_of(dry_run: bool, **values: Any) -> Json:
    """The body of a subresource request, without unset options."""
    if dry_run:
        click.echo("Dry Run execution")
    given = {key: value for key, value in values.items() if value is not None}
    return {**given, "dryRun": ["All"]} if dry_run else given


def ask(
    settings: CliSettings,
    resource: str,
    name: str,
    verb: str,
    body: Json | None,
    trying: str,
    state: str = "",
    *,
    new_instance: bool = False,
) -> None:
    """Sends `verb` to a VM or VMI; waits for `state` if given, with `new_instance` in another VMI.

    Raises CliError: "cannot `trying`: why".
    """
    from cli.client import ApiClient, RequestRefused, run
    from cli.wait import instance_uid, reached

    async def put() -> None:
        async with ApiClient(settings) as client:
            former = await instance_uid(client, name) if new_instance and state else None
            try:
                await client.put(machine_path(resource, client.namespace, name, verb), body)
            except RequestRefused as refusal:
                raise CliError(f"cannot {trying}: {refusal}") from refusal
            if state:
                await reached(client, name, state, former)

    run(put())


@command("start", short_help="Start a virtual machine.")
@machine("VM")
@click.option("--paused", is_flag=True, help="Start with paused CPUs, until `unpause`.")
@dry_run_option
@wait_option("Running")
def start(settings: CliSettings, name: str, paused: bool, dry_run: bool, wait: bool) -> None:
    """Start a virtual machine.

    \b
    Examples:
      hyperctl start myvm
      hyperctl start myvm --paused
    """
    body = options_of(dry_run, paused=paused or None)
    state = ("Paused" if paused else "Running") if wait and not dry_run else ""
    ask(settings, MACHINES, name, "start", body, f"start VirtualMachine {name}", state)
    click.echo(f"VM {name} was scheduled to start")


def grace_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The flags `--force` and `--grace-period`, like virtctl's."""
    force = click.option("--force", is_flag=True, help="With --grace-period=0: power off immediately.")
    grace = click.option(
        "--grace-period", type=int, default=-1, metavar="SECONDS", help="Time for the guest to shut down."
    )
    return force(grace(function))


def grace_of(force: bool, seconds: int) -> int | None:
    """The grace period to send; None for the VM's own. Raises CliError for inconsistent flags."""
    if seconds == 0 and not force:
        raise CliError("--grace-period=0 powers the VM off without a guest shutdown: confirm with --force")
    if force and seconds != 0:
        raise CliError("--force requires --grace-period=0")
    if seconds < -1:
        raise CliError(f"--grace-period must be a number of seconds, not {seconds}")
    return seconds if seconds >= 0 else None


@command("stop", short_help="Stop a virtual machine.")
@machine("VM")
@grace_options
@dry_run_option
@wait_option("Stopped")
def stop(settings: CliSettings, name: str, force: bool, grace_period: int, dry_run: bool, wait: bool) -> None:
    """Stop a virtual machine by shutting down its guest.

    \b
    Examples:
      hyperctl stop myvm
      hyperctl stop myvm --force --grace-period=0
    """
    body = options_of(dry_run, gracePeriod=grace_of(force, grace_period))
    state = "Stopped" if wait and not dry_run else ""
    ask(settings, MACHINES, name, "stop", body, f"stop VirtualMachine {name}", state)
    click.echo(f"VM {name} was scheduled to stop")


@command("restart", short_help="Restart a virtual machine.")
@machine("VM")
@grace_options
@dry_run_option
@wait_option("Running again")
def restart(settings: CliSettings, name: str, force: bool, grace_period: int, dry_run: bool, wait: bool) -> None:
    """Stop and start a virtual machine, which applies changes of its template.

    \b
    Example:
      hyperctl restart myvm
    """
    body = options_of(dry_run, gracePeriodSeconds=grace_of(force, grace_period))
    state = "Running" if wait and not dry_run else ""
    ask(settings, MACHINES, name, "restart", body, f"restart VirtualMachine {name}", state, new_instance=True)
    click.echo(f"VM {name} was scheduled to restart")


def _halt(settings: CliSettings, word: str, name: str, dry_run: bool, verb: str) -> None:
    if resource_of(word) == MACHINES:
        _must_exist(settings, name)
    ask(settings, INSTANCES, name, verb, options_of(dry_run), f"{verb} VirtualMachineInstance {name}")
    click.echo(f"VMI {name} was scheduled to {verb}")


def _must_exist(settings: CliSettings, name: str) -> None:
    from cli.client import ApiClient, run

    async def look() -> None:
        async with ApiClient(settings) as client:
            await client.get(object_path(MACHINES, client.namespace, name))

    run(look())


@command("pause", short_help="Pause the CPUs of a VM.")
@click.argument("kind", metavar="vm|vmi")
@click.argument("name")
@dry_run_option
def pause(settings: CliSettings, kind: str, name: str, dry_run: bool) -> None:
    """Pause the CPUs of a running VM; memory is kept.

    \b
    Examples:
      hyperctl pause vm myvm
      hyperctl pause vmi myvmi
    """
    _halt(settings, kind, name, dry_run, "pause")


@command("unpause", short_help="Resume a paused VM.")
@click.argument("kind", metavar="vm|vmi")
@click.argument("name")
@dry_run_option
def unpause(settings: CliSettings, kind: str, name: str, dry_run: bool) -> None:
    """Resume a paused VM.

    \b
    Example:
      hyperctl unpause vm myvm
    """
    _halt(settings, kind, name, dry_run, "unpause")


@command("soft-reboot", short_help="Reboot the guest of a VM.")
@machine("VMI")
def soft_reboot(settings: CliSettings, name: str) -> None:
    """Reboot the guest through the guest agent or ACPI, within the same VMI.

    \b
    Example:
      hyperctl soft-reboot myvmi
    """
    ask(settings, INSTANCES, name, "softreboot", None, f"soft-reboot VirtualMachineInstance {name}")
    click.echo(f"VMI {name} was scheduled to soft-reboot")


@command("reset", short_help="Reset a VM without a guest shutdown.")
@machine("VMI")
def reset(settings: CliSettings, name: str) -> None:
    """Reset a VM without a guest shutdown.

    \b
    Example:
      hyperctl reset myvmi
    """
    ask(settings, INSTANCES, name, "reset", None, f"reset VirtualMachineInstance {name}")
    click.echo(f"VMI {name} was scheduled to reset")
