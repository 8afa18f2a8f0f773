"""`expose`: creates a Service for ports of a VM."""

from __future__ import annotations

from typing import Any

import click

from api.k8s.meta import Json
from cli.commands import command
from cli.output import format_option, show
from cli.paths import SHORT, core_path, object_path, resource_of
from cli.problem import CliError
from cli.settings import CliSettings

NAME_LABEL = "vm.kubevirt.io/name"
"""Label of a launcher pod with the name of its VM."""
FAMILIES = {
    "ipv4": ("SingleStack", ["IPv4"]),
    "ipv6": ("SingleStack", ["IPv6"]),
    "ipv4,ipv6": ("PreferDualStack", ["IPv4", "IPv6"]),
    "ipv6,ipv4": ("PreferDualStack", ["IPv6", "IPv4"]),
}
POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")


def target_port_of(text: str) -> int | str:
    """A port number or name (Kubernetes' IntOrString)."""
    return int(text) if text.isascii() and text.isdigit() else text


def declared_ports(machine: Json) -> list[Json]:
    """Service ports for the ports declared by the VM's interfaces."""
    spec = machine["spec"]["template"]["spec"] if "template" in machine["spec"] else machine["spec"]
    interfaces = ((spec.get("domain") or {}).get("devices") or {}).get("interfaces") or ()
    found = [port for interface in interfaces for port in interface.get("ports") or ()]
    return [
        {"name": f"port-{number}", "port": port["port"], "protocol": (port.get("protocol") or "TCP").upper()}
        for number, port in enumerate(found, 1)
    ]


@command("expose", short_help="Expose ports of a VM as a Service.")
@click.argument("kind", metavar="vm|vmi")
@click.argument("machine", metavar="NAME")
@click.option("--name", required=True, help="Name of the Service.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port of the Service; by default the ports of the VM's interfaces."
)
@click.option("--target-port", metavar="PORT", help="Port of the guest; by default --port.")
@click.option("--protocol", type=click.Choice(["TCP", "UDP"]), default="TCP", show_default=True)
@click.option("--port-name", metavar="NAME", help="Name of the port.")
@click.option(
    "--type", "service_type", default="ClusterIP", show_default=True,
    type=click.Choice(["ClusterIP", "NodePort", "LoadBalancer"]), metavar="TYPE",
    help="Type of the Service: ClusterIP, NodePort or LoadBalancer.",
)  # fmt: skip
@click.option("--node-port", type=click.IntRange(0, 65535), default=0, help="Node port, with --type=NodePort.")
@click.option("--cluster-ip", metavar="ADDRESS", help="Cluster IP; None for a headless Service.")
@click.option("--external-ip", metavar="ADDRESS", help="External IP of the Service.")
@click.option("--load-balancer-ip", metavar="ADDRESS", help="IP to request from the load balancer.")
@click.option(
    "--ip-family", type=click.Choice(list(FAMILIES), case_sensitive=False), help="IP families: ipv4, ipv6 or both."
)
@click.option("--ip-family-policy", type=click.Choice(POLICIES), help="IP family policy.")
@click.option("--labels", metavar="KEY=VALUE,…", help="Labels of the Service.")
@click.option("--dry-run", is_flag=True, help="Create nothing; with -o, print the Service.")
@format_option()
def expose(settings: CliSettings, kind: str, machine: str, name: str, output: str | None, **flags: Any) -> None:
    """Expose ports of a VM as a Service.

    \b
    Examples:
      hyperctl expose vm myvm --name=myvm-ssh --port=5555 --target-port=22
      hyperctl expose vmi myvmi --name=myvmi-web --port=80 --type=NodePort --node-port=30080
    """
    from cli.client import ApiClient, run

    resource = resource_of(kind)

    async def make() -> Json:
        async with ApiClient(settings) as client:
            found = await client.get(object_path(resource, client.namespace, machine))
            body = service(name, client.namespace, machine, flags, found)
            params = "?dryRun=All" if flags["dry_run"] else ""
            return await client.document("POST", core_path("services", client.namespace) + params, body)

    made = run(make())
    if output:
        show(made, output)
    else:
        click.echo(f"Service {name} successfully exposed for {SHORT[resource]} {machine}")


def service(name: str, namespace: str, machine: str, flags: Json, found: Json) -> Json:
    """The Service to create. Raises CliError when there is no port."""
    spec: Json = {
        "type": flags["service_type"],
        "selector": {NAME_LABEL: machine},
        "ports": _ports(flags) or declared_ports(found),
    }
    if not spec["ports"]:
        raise CliError(f"the interfaces of {machine} declare no ports: set --port")
    for field, flag in (("clusterIP", "cluster_ip"), ("loadBalancerIP", "load_balancer_ip")):
        if flags[flag]:
            spec[field] = flags[flag]
    if flags["external_ip"]:
        spec["externalIPs"] = [flags["external_ip"]]
    if flags["ip_family"]:
        spec["ipFamilyPolicy"], spec["ipFamilies"] = FAMILIES[flags["ip_family"]]
    if flags["ip_family_policy"]:
        spec["ipFamilyPolicy"] = flags["ip_family_policy"]
    metadata: Json = {"name": name, "namespace": namespace}
    if flags["labels"]:
        metadata["labels"] = _labels(flags["labels"])
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _ports(flags: Json) -> list[Json]:
    if flags["port"] is None:
        if flags["target_port"] or flags["node_port"] or flags["port_name"]:
            raise CliError("--target-port, --node-port and --port-name require --port")
        return []
    port: Json = {"port": flags["port"], "protocol": flags["protocol"]}
    if flags["port_name"]:
        port["name"] = flags["port_name"]
    if flags["target_port"]:
        port["targetPort"] = target_port_of(flags["target_port"])
    if flags["node_port"]:
        port["nodePort"] = flags["node_port"]
    return [port]


def _labels(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(key and equals for key, equals, _ in pairs):
        raise CliError(f"--labels must be key=value,…, not {text!r}")
    return {key: value for key, _, value in pairs}
