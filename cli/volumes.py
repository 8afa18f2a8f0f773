"""`addvolume` and `removevolume`: disks of a running machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.commands import command, machine
from cli.paths import INSTANCES, MACHINES, core_path, machine_path
from cli.problem import CliError
from cli.settings import CliSettings
from cli.verbs import dry_run_option, options_of

if TYPE_CHECKING:
    from cli.client import ApiClient

Json = dict[str, Any]
BUSES = {"disk": ("scsi", "virtio"), "lun": ("scsi",)}
NAME_LIMIT = 63
"""Characters of a disk's name (a DNS label)."""


@command("addvolume", short_help="Plug a volume into a running machine.")
@machine("VMI")
@click.option("--volume-name", required=True, metavar="NAME", help="The DataVolume or PersistentVolumeClaim.")
@click.option("--disk-name", metavar="NAME", help="The disk's name in the machine, if it is not the volume's.")
@click.option("--serial", help="The serial number by which the guest tells the disk.")
@click.option("--cache", type=click.Choice(["none", "writethrough", "writeback"]), help="How writes are cached.")
@click.option("--disk-type", type=click.Choice(list(BUSES)), default="disk", show_default=True)
@click.option("--bus", default="scsi", show_default=True, help="scsi or virtio.")
@click.option("--persist", is_flag=True, hidden=True, help="What is always done.")
@dry_run_option
def addvolume(settings: CliSettings, name: str, dry_run: bool, **flags: Any) -> None:
    """Plug a volume into a running machine; it stays when the machine restarts.

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
    """The disk as the API has it. Raises CliError."""
    name = flags["disk_name"] or flags["volume_name"]
    if len(name) > NAME_LIMIT:
        raise CliError(f"the disk's name {name!r} is longer than {NAME_LIMIT} characters: give a shorter --disk-name")
    if flags["bus"] not in BUSES[flags["disk_type"]]:
        raise CliError(
            f"--bus of a {flags['disk_type']} is {' or '.join(BUSES[flags['disk_type']])}, not {flags['bus']!r}"
        )
    disk: Json = {"name": name, flags["disk_type"]: {"bus": flags["bus"]}, "serial": flags["serial"] or name}
    return {**disk, "cache": flags["cache"]} if flags["cache"] else disk


async def _source(client: ApiClient, volume: str) -> Json:
    """What the volume is: a DataVolume, where there is one of that name, else a claim."""
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
        f"volume {volume} is neither a DataVolume nor a PersistentVolumeClaim of namespace {client.namespace}"
    )


async def _put(client: ApiClient, name: str, verb: str, body: Json, trying: str) -> None:
    """Asks for the VM, and for a machine without a VM for the VMI."""
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


@command("removevolume", short_help="Unplug a volume from a running machine.")
@machine("VMI")
@click.option("--volume-name", required=True, metavar="NAME", help="The volume's name in the machine.")
@click.option("--persist", is_flag=True, hidden=True, help="What is always done.")
@dry_run_option
def removevolume(settings: CliSettings, name: str, volume_name: str, persist: bool, dry_run: bool) -> None:
    """Unplug a volume that was plugged into a running machine.

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
