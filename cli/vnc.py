"""`vnc`: opens a VNC viewer, or a local port for one; `vnc screenshot`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.commands import Command, command, machine
from cli.paths import INSTANCES, machine_path
from cli.problem import CliError
from cli.settings import CliSettings
from cli.viewers import TYPES, VncViewer

if TYPE_CHECKING:
    from cli.client import ApiClient

OUTPUT_LIMIT = 500
"""Characters of a failed viewer's output in the error message."""


@command("screenshot", short_help="Take a screenshot of a VM.")
@machine("VMI")
@click.option("--file", "-f", "target", required=True, metavar="FILE", help="File for the PNG; - for standard output.")
@click.option("--move-cursor", "-m", is_flag=True, help="Move the mouse first, to wake the screen.")
def screenshot(settings: CliSettings, name: str, target: str, move_cursor: bool) -> None:
    """Take a screenshot of a VM as PNG.

    \b
    Examples:
      hyperctl vnc screenshot myvmi -f screen.png
      hyperctl vnc screenshot myvmi -f - | display
    """
    from cli.client import run

    picture = run(_picture(settings, name, move_cursor))
    if target == "-":
        sys.stdout.buffer.write(picture)
        sys.stdout.buffer.flush()
        return
    try:
        Path(target).write_bytes(picture)
    except OSError as error:
        raise CliError(f"cannot write {target}: {error.strerror}") from error


async def _picture(settings: CliSettings, name: str, move_cursor: bool) -> bytes:
    from cli.client import ApiClient, RequestRefused

    params = {"moveCursor": "true"} if move_cursor else {}
    async with ApiClient(settings) as client:
        try:
            return await client.call(
                "GET", machine_path(INSTANCES, client.namespace, name, "vnc/screenshot"), params=params
            )
        except RequestRefused as refusal:
            raise CliError(f"cannot take a screenshot of VirtualMachineInstance {name}: {refusal}") from refusal


class WithScreenshot(Command):
    """`vnc NAME` and `vnc screenshot NAME`: virtctl has both."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of `screenshot` if that is the first argument."""
        if args[:1] == [screenshot.name]:
            return screenshot.make_context(f"{info_name} {screenshot.name}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@command("vnc", cls=WithScreenshot, short_help="Open a VNC connection to a VM.")
@machine("VMI")
@click.option("--address", default="127.0.0.1", show_default=True, help="Listen address, with --proxy-only.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Local port; a free port by default.")
@click.option(
    "--proxy-only", is_flag=True, help="Print the local port and serve it until ctrl-C, without starting a viewer."
)
@click.option("--vnc-type", type=click.Choice(list(TYPES)), help="Type of the viewer in --vnc-path.")
@click.option("--vnc-path", metavar="FILE", help="Path of the VNC viewer.")
def vnc(
    settings: CliSettings,
    name: str,
    address: str,
    port: int,
    proxy_only: bool,
    vnc_type: str | None,
    vnc_path: str | None,
) -> None:
    """Open a VNC viewer for a VM. Several clients can connect at the same time.

    \b
    Examples:
      hyperctl vnc myvmi
      hyperctl vnc myvmi --proxy-only --port=5999
      hyperctl vnc screenshot myvmi -f screen.png
    """
    from cli.client import run

    if (vnc_type is None) != (vnc_path is None):
        raise CliError("--vnc-type and --vnc-path must be set together")
    choice = (vnc_type, vnc_path) if vnc_type and vnc_path else None
    if not proxy_only:
        run(_vnc(settings, name, "127.0.0.1", port, False, choice))
        return
    with contextlib.suppress(KeyboardInterrupt):  # the normal way to stop the proxy
        run(_vnc(settings, name, address, port, True, choice))


async def _vnc(
    settings: CliSettings, name: str, address: str, port: int, proxy_only: bool, choice: tuple[str, str] | None
) -> None:
    from cli import viewers
    from cli.client import ApiClient
    from cli.listening import tcp

    async with ApiClient(settings) as client:
        path = machine_path(INSTANCES, client.namespace, name, "vnc")
        await _accessible(client, path, name)
        async with tcp(client, path, address, port, f"VNC of {name}") as local:
            if proxy_only:
                click.echo(json.dumps({"port": local}))
                await asyncio.Event().wait()
            await _show(viewers.chosen(*choice, local) if choice else viewers.found(local))


async def _accessible(client: ApiClient, path: str, name: str) -> None:
    """Checks that the VMI exists and access is allowed, before starting a viewer. Raises CliError."""
    from cli.client import RequestRefused

    try:
        async with client.socket(path):
            pass
    except RequestRefused as refusal:
        raise CliError(f"cannot open VNC of VirtualMachineInstance {name}: {refusal}") from refusal


async def _show(viewer: VncViewer) -> None:
    process = await asyncio.create_subprocess_exec(
        viewer.path, *viewer.arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
    if process.returncode:
        text = " ".join(output.decode(errors="replace").split())[-OUTPUT_LIMIT:]
        raise CliError(f"{viewer.path} failed with exit code {process.returncode}{f': {text}' if text else ''}")
