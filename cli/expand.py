"""`expand`: prints a VM with its instancetype and preference expanded."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from api.k8s.meta import Json
from cli.commands import command
from cli.output import format_option, show
from cli.paths import MACHINES, SUBRESOURCES, machine_path
from cli.problem import CliError
from cli.settings import CliSettings


@command("expand", short_help="Expand the instancetype and preference of a VM.")
@click.option("--vm", "name", metavar="NAME", help="Name of a VM in the cluster.")
@click.option("--file", "-f", "file", metavar="FILE", help="Manifest file; - for standard input.")
@format_option("yaml")
def expand(settings: CliSettings, name: str | None, file: str | None, output: str) -> None:
    """Print a VM with its instancetype and preference expanded.

    \b
    Examples:
      hyperctl expand --vm myvm
      hyperctl expand --file myvm.yaml -o json
    """
    from cli.client import ApiClient, run

    if (name is None) == (file is None):
        raise CliError("exactly one of --vm and --file is required")
    manifest = read(file) if file else None

    async def ask() -> Json:
        async with ApiClient(settings) as client:
            if name:
                return await client.get(machine_path(MACHINES, client.namespace, name, "expand-spec"))
            path = f"{SUBRESOURCES}/namespaces/{client.namespace}/expand-vm-spec"
            return await client.document("PUT", path, manifest)

    show(run(ask()), output)


def read(file: str) -> Json:
    """Reads a manifest in YAML or JSON. Raises CliError."""
    import yaml

    try:
        document = yaml.safe_load(sys.stdin.read() if file == "-" else Path(file).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CliError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise CliError(f"{file} does not contain a VirtualMachine")
    return document
