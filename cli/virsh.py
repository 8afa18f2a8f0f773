"""`virsh`: runs virsh in the launcher pod of a VM, through kubectl exec."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import click

from api import names
from cli.commands import command
from cli.problem import CliError
from cli.settings import CliSettings


def pod_of(pods: dict[str, Any]) -> str | None:
    """The name of the running pod in a list of launcher pods."""
    for pod in pods.get("items") or []:
        if pod["metadata"]["name"].startswith(names.LAUNCHER_PREFIX) and pod["status"].get("phase") == "Running":
            return str(pod["metadata"]["name"])
    return None


def words_of(settings: CliSettings, namespace: str, pod: str, words: Sequence[str]) -> list[str]:
    """The kubectl command line; the global flags have the same names."""
    flags = [word for word in settings.words() if not word.startswith("--namespace")]
    where = [f"--namespace={namespace}", "exec", pod, f"--container={names.COMPUTE_CONTAINER}"]
    return ["kubectl", *flags, *where, "--", "virsh", *words]


@command("virsh", short_help="Run virsh in the launcher pod of a VM.")
@click.argument("name", metavar="VMI")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="VERB [ARGUMENT]...")
def virsh(settings: CliSettings, name: str, words: tuple[str, ...]) -> None:
    """Run virsh in the launcher pod of a VM, for diagnosis. Requires kubectl, and permission to exec in the pod.

    \b
    Examples:
      hyperctl virsh myvmi domblklist
      hyperctl virsh myvmi dumpxml
      hyperctl virsh myvmi -- qemu-monitor-command --hmp info block
    """
    from cli.client import ApiClient, RequestRefused, run
    from cli.paths import INSTANCES, core_path, object_path

    if shutil.which("kubectl") is None:
        raise CliError("kubectl not found in PATH: it is required to run virsh in the launcher pod")

    async def ask() -> tuple[str, str | None]:
        async with ApiClient(settings) as client:
            try:
                vmi = await client.get(object_path(INSTANCES, client.namespace, name))
                selector = {"labelSelector": f"{names.LABEL_CREATED_BY}={vmi['metadata']['uid']}"}
                pods = await client.get(core_path("pods", client.namespace), selector)
            except RequestRefused as refusal:
                raise CliError(f"cannot find the pod of VirtualMachineInstance {name}: {refusal}") from refusal
            return client.namespace, pod_of(pods)

    namespace, pod = run(ask())
    if pod is None:
        raise CliError(f"VirtualMachineInstance {name} has no running launcher pod: see its Events")
    code = subprocess.run(words_of(settings, namespace, pod, words or ("list",)), check=False).returncode
    if code:
        raise click.exceptions.Exit(code if code > 0 else 128 - code)
