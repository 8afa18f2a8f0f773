"""`fence`: lets an administrator confirm that a VM no longer runs on an unreachable node."""

from __future__ import annotations

import click

from cli.commands import command, machine
from cli.paths import INSTANCES, machine_path, object_path
from cli.problem import CliError
from cli.settings import CliSettings


@command("fence", short_help="Confirm that a VM no longer runs on a lost node.")
@machine("VMI")
@click.option("--yes", is_flag=True, help="Confirm; without this flag the pending pods are only listed.")
def fence(settings: CliSettings, name: str, yes: bool) -> None:
    """Confirm that no QEMU of this VM runs on the nodes that it waits for.

    A VM whose node or pod is lost is not restarted before there is evidence that its QEMU has terminated, because
    a second instance would corrupt its disks. If neither the kubelet nor the handler can provide it, you can: first
    check that the node is off, or that no qemu-system process of the VM is left on it.

    For a node that is off, prefer the out-of-service taint: Kubernetes then also detaches its volumes:
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
        raise CliError("nothing was changed: add --yes after checking that none of these pods is still running")
    click.echo(f"VMI {name} was fenced")
