"""`version`: versions of the client and the server."""

from __future__ import annotations

import platform
from typing import Any

import click

from api.version import VERSION
from cli.commands import command
from cli.output import format_option, show
from cli.paths import SUBRESOURCES
from cli.settings import CliSettings

_FIELDS = ("gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "pythonVersion", "compiler", "platform")


def client_version() -> dict[str, str]:
    """Version information of the client."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "gitVersion": f"v{VERSION}",
        "pythonVersion": platform.python_version(),
        "platform": f"{platform.system().lower()}/{machine}",
    }


def version_lines(info: dict[str, Any]) -> str:
    """The format of Go clients, which scripts parse for GitVersion."""
    versions = [f'{name[0].upper()}{name[1:]}:"{info[name]}"' for name in _FIELDS if info.get(name)]
    return f"version.Info{{{', '.join(versions)}}}"


@command("version", short_help="Show the versions of the client and the server.")
@click.option("--client", "-c", "client_only", is_flag=True, help="Client version only; does not contact the server.")
@format_option()
def version(settings: CliSettings, client_only: bool, output: str | None) -> None:
    """Show the versions of the client and of hyperlet in the cluster."""
    versions = {"clientVersion": client_version()}
    if not client_only:
        versions["serverVersion"] = _server_version(settings)
    if output:
        show(versions, output)
        return
    for key, info in versions.items():
        click.echo(f"{key.removesuffix('Version').capitalize()} Version: {version_lines(info)}")


def _server_version(settings: CliSettings) -> dict[str, Any]:
    from cli.client import ApiClient, run

    async def ask() -> dict[str, Any]:
        async with ApiClient(settings) as client:
            return await client.get(f"{SUBRESOURCES}/version")

    return run(ask())
