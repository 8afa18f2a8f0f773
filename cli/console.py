"""`console`: a machine's serial console on this terminal."""

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


@command("console", short_help="Open the serial console of a machine.")
@machine("VMI")
@click.option(
    "--timeout",
    type=float,
    default=5,
    show_default=True,
    metavar="MINUTES",
    help="Patience with a machine that starts.",
)
@click.option("--shared", is_flag=True, help="Watch a console that somebody else has, instead of taking it over.")
def console(settings: CliSettings, name: str, timeout: float, shared: bool) -> None:
    """Open the serial console of a machine. Ctrl-] (or ctrl-5) leaves it.

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
        with progress(f"{name}: waiting for its console") as tell:
            socket = await _opened(client, name, path, params, seconds, tell)
        try:
            await attach(socket, Terminal(), name)
        finally:
            await socket.close()


async def _opened(
    client: ApiClient, name: str, path: str, params: dict[str, str], seconds: float, tell: Callable[[str], None]
) -> aiohttp.ClientWebSocketResponse:
    """The open console; a machine that is still starting is waited for."""
    from cli.client import RequestRefused

    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await client.connect(path, params)
        except RequestRefused as refusal:
            late = asyncio.get_running_loop().time() > deadline
            if late or not await _starting(client, name, refusal):
                raise CliError(f"cannot open the console of VirtualMachineInstance {name}: {refusal}") from refusal
            tell(f"{name}: waiting for its console: {refusal}")
        await asyncio.sleep(RETRY_SECONDS)


async def _starting(client: ApiClient, name: str, refusal: RequestRefused) -> bool:
    """Whether a refusal may only be too early: the machine is on its way."""
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
        pass  # what the person may not see, or what is not there, tells nothing
    return False


async def attach(socket: aiohttp.ClientWebSocketResponse, terminal: Terminal, name: str) -> None:
    """Gives the terminal to the guest until the person leaves or the server ends it. Raises CliError for a bad end."""
    from cli.streams import StreamClosed, incoming, outgoing

    loop = asyncio.get_running_loop()
    left: asyncio.Future[int] = loop.create_future()

    def leave(number: int) -> None:
        loop.call_soon_threadsafe(left.set_result, number)

    async def show(data: bytes) -> None:
        terminal.write(data)

    terminal.say(f"Successfully connected to {name} console. Press Ctrl+] or Ctrl+5 to exit console.")
    with raw(terminal, leave):
        typing = asyncio.create_task(outgoing(until_escape(typed(terminal.stdin)), socket))
        showing = asyncio.create_task(incoming(socket, show))
        await asyncio.wait((typing, showing, left), return_when=asyncio.FIRST_COMPLETED)
        if typing.done() and not typing.exception() and not typing.result():
            await asyncio.wait((showing, left), return_when=asyncio.FIRST_COMPLETED)
        ended = showing.done()
        for task in (typing, showing):
            task.cancel()
        await asyncio.gather(typing, showing, return_exceptions=True)
    if left.done():
        raise CliError(f"left the console of {name}: signal {left.result()}", 128 + left.result())
    if not ended:
        terminal.say("")  # the shell's prompt gets a line of its own
        if not typing.cancelled():
            typing.result()  # an error that nobody foresaw is not an end that somebody wished
        return
    try:
        reason = await showing
    except StreamClosed as end:
        raise CliError(_disconnected(name, end.reason)) from end
    terminal.say(f"\nThe console of {name} was closed{f': {reason}' if reason else '.'}")


async def until_escape(keys: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What is typed before ctrl-]."""
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
        f"disconnected from the console of {name}: the machine was powered off, somebody else took the console over, "
        "or the network failed"
    )
