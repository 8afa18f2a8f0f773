"""`addvolume` and `removevolume`: hot-plug of disks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from api.k8s.meta import Json
from cli.commands import command, machine
from cli.paths import INSTANCES, MACHINES, core_path, machine_path
from cli.problem import CliError
from cli.settings import CliSettings
from cli.verbs import dry_run_option, options_of

if TYPE_CHECKING:
    from cli.client import ApiClient

BUSES = {"disk": ("scsi", "virtio"), "lun": ("scsi",)}
NAME_LIMIT = 63
"""Maximum length of a disk name (a DNS label)."""


@command("addvolume", short_help="Add a volume to a running VM.")
@machine("VMI")
@click.option("--volume-name", required=True, metavar="NAME", help="Name of the DataVolume or PersistentVolumeClaim.")
@click.option("--disk-name", metavar="NAME", help="Name of the disk in the VM; by default the volume's.")
@click.option("--serial", help="Serial number of the disk.")
@click.option("--cache", type=click.Choice(["none", "writethrough", "writeback"]), help="Cache mode.")
@click.option("--disk-type", type=click.Choice(list(BUSES)), default="disk", show_default=True)
@click.option("--bus", default="scsi", show_default=True, help="scsi or virtio.")
@click.option("--persist", is_flag=True, hidden=True, help="No effect: always the case.")
@dry_run_option
def addvolume(settings: CliSettings, name: str, dry_run: bool, **flags: Any) -> None:
    """Add a volume to a running VM; it persists across restarts.

    \b
    Example:
      hyperctl addvolume myvm --volume-name=mydisk --serial=1234567890
    """
    from cli.client import ApiClient, run

    disk = disk_of(flags)
    body = options_of(dry_run, name=disk["name"], disk=disk)

    async def add() -> None:
        async with ApiClient(settings) as client:
            body["volumeSource"] = await _source(client, flags["volume_name"])
            await _put(client, name, "addvolume", body, f"add volume {flags['volume_name']} to {name}")

    run(add())
    click.echo(f"Successfully submitted add volume request to VM {name} for volume {flags['volume_name']}")


def disk_of(flags: Json) -> Json:
    """The disk as JSON data. Raises CliError."""
    name = flags["disk_name"] or flags["volume_name"]
    if len(name) > NAME_LIMIT:
        raise CliError(f"disk name {name!r} exceeds {NAME_LIMIT} characters: set a shorter --disk-name")
    if flags["bus"] not in BUSES[flags["disk_type"]]:
        raise CliError(
            f"--bus of a {flags['disk_type']} must be {' or '.join(BUSES[flags['disk_type']])}, not {flags['bus']!r}"
        )
    disk: Json = {"name": name, flags["disk_type"]: {"bus": flags["bus"]}, "serial": flags["serial"] or name}
    return {**disk, "cache": flags["cache"]} if flags["cache"] else disk


async def _source(client: ApiClient, volume: str) -> Json:
    """The volume source: the DataVolume with that name if it exists, else the PersistentVolumeClaim."""
    from cli.client import RequestRefused

    datavolumes = f"/apis/cdi.kubevirt.io/v1beta1/namespaces/{client.namespace}/datavolumes"
    places = (
        (f"{datavolumes}/{volume}", "dataVolume", "name"),
        (core_path("persistentvolumeclaims", client.namespace, volume), "persistentVolumeClaim", "claimName"),
    )
    for path, source, field in places:
        try:
            await client.get(path)
            return {source: {field: volume, "hotpluggable": True}}
        except RequestRefused as refusal:
            if refusal.status.code not in (403, 404):
                raise
    raise CliError(
        f"volume {volume} is neither a DataVolume nor a PersistentVolumeClaim in namespace {client.namespace}"
    )


async def _put(client: ApiClient, name: str, verb: str, body: Json, trying: str) -> None:
    """Sends the request to the VM, or to the VMI if there is no VM."""
    from cli.client import RequestRefused

    try:
        try:
            await client.put(machine_path(MACHINES, client.namespace, name, verb), body)
        except RequestRefused as refusal:
            if refusal.status.code != 404:
                raise
            await client.put(machine_path(INSTANCES, client.namespace, name, verb), body)
    except RequestRefused as refusal:
        raise CliError(f"cannot {trying}: {refusal}") from refusal


@command("removevolume", short_help="Remove a volume from a running VM.")
@machine("VMI")
@click.option("--volume-name", required=True, metavar="NAME", help="Name of the volume in the VM.")
@click.option("--persist", is_flag=True, hidden=True, help="No effect: always the case.")
@dry_run_option
def removevolume(settings: CliSettings, name: str, volume_name: str, persist: bool, dry_run: bool) -> None:
    """Remove a hot-plugged volume from a running VM.

    \b
    Example:
      hyperctl removevolume myvm --volume-name=mydisk
    """
    from cli.client import ApiClient, run

    body = options_of(dry_run, name=volume_name)

    async def remove() -> None:
        async with ApiClient(settings) as client:
            await _put(client, name, "removevolume", body, f"remove volume {volume_name} from {name}")

    run(remove())
    click.echo(f"Successfully submitted remove volume request to VM {name} for volume {volume_name}")
