"""`--wait`: stays until a machine is in the state that was asked for, with a spinner on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from cli.paths import INSTANCES, MACHINES, object_path

if TYPE_CHECKING:
    from cli.client import ApiClient

POLL_SECONDS = 0.5


def wait_option(state: str) -> Callable[[Any], Any]:
    """The flag `--wait`."""
    return click.option("--wait", is_flag=True, help=f"Stay until the machine is {state}.")


@contextlib.contextmanager
def progress(words: str) -> Iterator[Callable[[str], None]]:
    """A spinner beside `words` while the body runs, on standard error; nothing where that is no terminal.

    Yields a function that changes the words.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(words)) as status:
        yield lambda text: status.update(escape(text))


async def instance_uid(client: ApiClient, name: str) -> str | None:
    """Which instance of a VM runs now; None where none does."""
    from cli.client import RequestRefused

    try:
        instance = await client.get(object_path(INSTANCES, client.namespace, name))
    except RequestRefused as refusal:
        if refusal.status.code == 404:
            return None
        raise
    return str(instance["metadata"]["uid"])


async def reached(client: ApiClient, name: str, state: str, former: str | None = None) -> None:
    """Returns when the VM is `state`: its printableStatus, in an instance that is not `former`.

    Raises CliError when the VM is deleted meanwhile.
    """
    with progress(f"{name}: waiting until it is {state}") as tell:
        while True:
            vm = await client.get(object_path(MACHINES, client.namespace, name))
            status = (vm.get("status") or {}).get("printableStatus") or "Unknown"
            tell(f"{name}: {status}, waiting until it is {state}")
            if status == state and (former is None or await instance_uid(client, name) not in (None, former)):
                return
            await asyncio.sleep(POLL_SECONDS)
