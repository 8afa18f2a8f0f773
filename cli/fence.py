"""fence: an administrator's word that a machine whose node does not answer runs there no more."""

from __future__ import annotations

import click

from cli.commands import command, machine
from cli.paths import INSTANCES, machine_path, object_path
from cli.problem import CliError
from cli.settings import CliSettings


@command("fence", short_help="Vouch that a machine no longer runs on a node that is lost.")
@machine("VMI")
@click.option("--yes", is_flag=True, help="You made sure of it: without this, only what is waited for is told.")
def fence(settings: CliSettings, name: str, yes: bool) -> None:
    """Give your word that no QEMU of this machine runs on the nodes that it waits for.

    A machine whose node or pod is lost is not started again before there is evidence that it has ended, because a
    second copy would destroy its disks. Where neither kubelet nor handler can give it, you can, by this: look first
    that the node is off, or that no qemu-system process of the machine is left there.

    A node that is off as a whole is better told to Kubernetes, which then detaches its volumes, too:
    kubectl taint node NODE node.kubernetes.io/out-of-service=nodeshutdown:NoExecute

    \b
    Examples:
      hyperctl fence myvmi
      hyperctl fence myvmi --yes
    """
    from cli.client import ApiClient, RequestRefused, run

    async def put() -> dict[str, str]:
        async with ApiClient(settings) as client:
            try:
                instance = await client.get(object_path(INSTANCES, client.namespace, name))
                pods = (instance.get("status") or {}).get("activePods") or {}
                waited = {uid: node for uid, node in pods.items() if node}
                if yes or not waited:
                    await client.put(machine_path(INSTANCES, client.namespace, name, "fence"), {"pods": list(waited)})
            except RequestRefused as refusal:
                raise CliError(f"cannot fence VirtualMachineInstance {name}: {refusal}") from refusal
            return waited

    for uid, node in run(put()).items():
        click.echo(f"pod {uid} on node {node}")
    if not yes:
        raise CliError("nothing was changed: if you made sure that none of these runs any more, add --yes")
    click.echo(f"VMI {name} was fenced")
