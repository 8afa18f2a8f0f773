"""`console`: the serial console of a VM in the terminal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import click

from cli.commands import command, machine
from cli.paths import INSTANCES, MACHINES, machine_path, object_path
from cli.problem import CliError
from cli.settings import CliSettings
from cli.terminal import ESCAPE, Terminal, raw, typed

if TYPE_CHECKING:
    import aiohttp

    from cli.client import ApiClient, RequestRefused

RETRY_SECONDS = 0.5
_BEFORE_RUNNING = {"", "Pending", "Scheduling", "Scheduled"}
_STOPPED = {"", "Stopped", "Stopping", "Terminating"}


@command("console", short_help="Connect to the serial console of a VM.")
@machine("VMI")
@click.option(
    "--timeout",
    type=float,
    default=5,
    show_default=True,
    metavar="MINUTES",
    help="Minutes to wait for a VM that is starting.",
)
@click.option("--shared", is_flag=True, help="Attach read-only instead of taking over the console.")
def console(settings: CliSettings, name: str, timeout: float, shared: bool) -> None:
    """Connect to the serial console of a VM. Press ctrl-] (or ctrl-5) to exit.

    \b
    Examples:
      hyperctl console myvmi
      hyperctl console --timeout=1 myvmi
      hyperctl console --shared myvmi
    """
    from cli.client import run

    run(_console(settings, name, timeout * 60, shared))


async def _console(settings: CliSettings, name: str, seconds: float, shared: bool) -> None:
    from cli.client import ApiClient
    from cli.wait import progress

    params = {"shared": "true"} if shared else {}
    async with ApiClient(settings) as client:
        path = machine_path(INSTANCES, client.namespace, name, "console")
        with progress(f"{name}: waiting for its console") as update:
            socket = await _opened(client, name, path, params, seconds, update)
        try:
            await attach(socket, Terminal(), name)
        finally:
            await socket.close()


async def _opened(
    client: ApiClient, name: str, path: str, params: dict[str, str], seconds: float, update: Callable[[str], None]
) -> aiohttp.ClientWebSocketResponse:
    """Opens the console; waits for a VM that is starting."""
    from cli.client import RequestRefused

    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await client.connect(path, params)
        except RequestRefused as refusal:
            late = asyncio.get_running_loop().time() > deadline
            if late or not await _starting(client, name, refusal):
                raise CliError(f"cannot open the console of VirtualMachineInstance {name}: {refusal}") from refusal
            update(f"{name}: waiting for its console: {refusal}")
        await asyncio.sleep(RETRY_SECONDS)


async def _starting(client: ApiClient, name: str, refusal: RequestRefused) -> bool:
    """Whether a refusal is temporary because the VM is starting."""
    from cli.client import RequestRefused

    try:
        match refusal.status.code:
            case 503:
                return True
            case 400 | 409:
                instance = await client.get(object_path(INSTANCES, client.namespace, name))
                return ((instance.get("status") or {}).get("phase") or "") in _BEFORE_RUNNING
            case 404:
                vm = await client.get(object_path(MACHINES, client.namespace, name))
                status = vm.get("status") or {}
                asked = any(request.get("action") == "Start" for request in status.get("stateChangeRequests") or ())
                return asked or (status.get("printableStatus") or "") not in _STOPPED
    except RequestRefused:
        pass  # not found or not permitted: the first refusal is reported
    return False


async def attach(socket: aiohttp.ClientWebSocketResponse, terminal: Terminal, name: str) -> None:
    """Connects the terminal to the console until the user exits or the server closes. Raises CliError on an error."""
    from cli.streams import StreamClosed, incoming, outgoing
    from kit.tasks import running

    loop = asyncio.get_running_loop()
    left: asyncio.Future[int] = loop.create_future()

    def leave(number: int) -> None:
        loop.call_soon_threadsafe(left.set_result, number)

    async def show(data: bytes) -> None:
        terminal.write(data)

    terminal.say(f"Successfully connected to {name} console. Press Ctrl+] or Ctrl+5 to exit console.")
    with raw(terminal, leave):
        async with running(outgoing(until_escape(typed(terminal.stdin)), socket), incoming(socket, show)) as tasks:
            typing, showing = tasks
            await asyncio.wait((typing, showing, left), return_when=asyncio.FIRST_COMPLETED)
            if typing.done() and not typing.exception() and not typing.result():
                await asyncio.wait((showing, left), return_when=asyncio.FIRST_COMPLETED)
            ended = showing.done()
    if left.done():
        raise CliError(f"console of {name} closed by signal {left.result()}", 128 + left.result())
    if not ended:
        terminal.say("")  # start a new line for the shell's prompt
        if not typing.cancelled():
            typing.result()  # re-raises an unexpected error
        return
    try:
        reason = await showing
    except StreamClosed as end:
        raise CliError(_disconnected(name, end.reason)) from end
    terminal.say(f"\nThe console of {name} was closed{f': {reason}' if reason else '.'}")


async def until_escape(keys: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Input up to ctrl-]."""
    async for data in keys:
        before, escape, _ = data.partition(ESCAPE)
        if before:
            yield before
        if escape:
            return


def _disconnected(name: str, reason: str) -> str:
    if reason:
        return f"disconnected from the console of {name}: {reason}"
    return (
        f"disconnected from the console of {name}: the VM was powered off, another client took over the console, "
        "or the network failed"
    )
