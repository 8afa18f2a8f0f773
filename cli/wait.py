"""`--wait`: waits until a VM reaches the requested state, with a spinner on a terminal."""

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
    return click.option("--wait", is_flag=True, help=f"Wait until the VM is {state}.")


@contextlib.contextmanager
def progress(words: str) -> Iterator[Callable[[str], None]]:
    """Shows `words` with a spinner on standard error until exit, if that is a terminal.

    Yields a function that replaces the text.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(words)) as status:
        yield lambda text: status.update(escape(text))


async def instance_uid(client: ApiClient, name: str) -> str | None:
    """UID of the VM's current VMI; None without one."""
    from cli.client import RequestRefused

    try:
        instance = await client.get(object_path(INSTANCES, client.namespace, name))
    except RequestRefused as refusal:
        if refusal.status.code == 404:
            return None
        raise
    return str(instance["metadata"]["uid"])


async def reached(client: ApiClient, name: str, state: str, former: str | None = None) -> None:
    """Waits until printableStatus of the VM is `state`, in a VMI whose UID is not `former`.

    Raises CliError when the VM is deleted.
    """
    with progress(f"{name}: waiting until it is {state}") as update:
        while True:
            vm = await client.get(object_path(MACHINES, client.namespace, name))
            status = (vm.get("status") or {}).get("printableStatus") or "Unknown"
            update(f"{name}: {status}, waiting until it is {state}")
            if status == state and (former is None or await instance_uid(client, name) not in (None, former)):
                return
            await asyncio.sleep(POLL_SECONDS)
