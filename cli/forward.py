"""`port-forward`: forwards local ports, or standard input and output, to ports of a VM."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import click

from cli.commands import command
from cli.paths import machine_path
from cli.problem import CliError
from cli.settings import CliSettings
from cli.targets import Forward, Target, forward_of, target_of

if TYPE_CHECKING:
    from cli.client import ApiClient


@command("port-forward", short_help="Forward local ports to a VM.")
@click.argument("target", metavar="TYPE/NAME[/NAMESPACE]")
@click.argument("ports", nargs=-1, required=True, metavar="[PROTOCOL/]LOCAL[:REMOTE]…")
@click.option("--address", default="127.0.0.1", show_default=True, help="Local address to listen on.")
@click.option("--stdio", is_flag=True, help="Forward one port over standard input and output.")
def port_forward(settings: CliSettings, target: str, ports: tuple[str, ...], address: str, stdio: bool) -> None:
    """Forward local ports to a VM through the API server. Stop with ctrl-C.

    Type is vm or vmi, the protocol tcp (the default) or udp.

    \b
    Examples:
      hyperctl port-forward vmi/myvmi 8080:80
      hyperctl port-forward vmi/myvmi/mynamespace tcp/2222:22 udp/5353:53
      hyperctl port-forward --stdio vmi/myvmi 22
    """
    from cli.client import run

    machine, forwards = target_of(target), [forward_of(port) for port in ports]
    if stdio and len(forwards) != 1:
        raise CliError("--stdio accepts exactly one port")
    if stdio:
        run(_on_stdio(settings, machine, forwards[0]))
        return
    with contextlib.suppress(KeyboardInterrupt):
        run(_listen(settings, machine, forwards, address))


def _place(client: ApiClient, target: Target, forward: Forward) -> str:
    return machine_path(target.resource, target.namespace or client.namespace, target.name, forward.verb)


async def _listen(settings: CliSettings, target: Target, forwards: list[Forward], address: str) -> None:
    from cli.client import ApiClient
    from cli.listening import tcp, udp

    async with ApiClient(settings) as client, contextlib.AsyncExitStack() as stack:
        for forward in forwards:
            listen = tcp if forward.protocol == "tcp" else udp
            what = f"port {forward.remote} of {target.name}"
            path = _place(client, target, forward)
            port = await stack.enter_async_context(listen(client, path, address, forward.local, what))
            where = f"[{address}]" if ":" in address else address
            click.echo(f"Forwarding from {where}:{port} -> {forward.remote} ({forward.protocol})")
        await asyncio.Event().wait()


async def _on_stdio(settings: CliSettings, target: Target, forward: Forward) -> None:
    from cli.client import ApiClient
    from cli.streams import CHUNK, StreamClosed, both_ways
    from cli.terminal import typed

    async def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    async with ApiClient(settings) as client:
        try:
            async with client.socket(_place(client, target, forward)) as socket:
                await both_ways(typed(0, CHUNK), socket, write)
        except StreamClosed as end:
            raise CliError(f"port {forward.remote} of {target.name}: {end.reason or 'the connection broke'}") from end
