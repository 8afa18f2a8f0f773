"""`create vm`: prints a manifest built from flags."""

from __future__ import annotations

import base64
import binascii
import random
import string
from pathlib import Path

import click

from cli.commands import CommandEntry, Lazy, command
from cli.output import format_option, show
from cli.problem import CliError
from cli.settings import CliSettings

create = Lazy(
    {"vm": CommandEntry("cli.create", "vm", "Print a VirtualMachine manifest.")},
    name="create",
    help="Generate manifests from flags.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def random_name() -> str:
    """`vm-` and five random letters or digits, like virtctl."""
    return "vm-" + "".join(random.choices(string.ascii_lowercase + string.digits, k=5))


@command("vm", short_help="Print a VirtualMachine manifest.")
@click.option("--name", help="Name of the VM; random by default.")
@click.option(
    "--run-strategy", default="Always", show_default=True, help="Always, Halted, Manual, Once, RerunOnFailure."
)
@click.option("--termination-grace-period", type=click.IntRange(0), default=180, show_default=True, metavar="SECONDS")
@click.option("--memory", default="512Mi", show_default=True, help="Guest memory.")
@click.option("--cpu", "cpus", type=click.IntRange(1), help="Number of vCPUs (not in virtctl).")
@click.option(
    "--volume-containerdisk",
    "containerdisks",
    multiple=True,
    metavar="src:IMAGE[,name:NAME][,bootorder:N]",
    help="Container disk volume. Can be repeated.",
)
@click.option(
    "--volume-pvc",
    "claims",
    multiple=True,
    metavar="src:CLAIM[,name:NAME][,bootorder:N]",
    help="PersistentVolumeClaim volume. Can be repeated.",
)
@click.option("--user", help="Cloud-init: default user.")
@click.option("--password-file", metavar="FILE", help="Cloud-init: file with the password, stored in the manifest.")
@click.option("--ssh-key", "ssh_keys", multiple=True, help="Cloud-init: comma-separated SSH public keys.")
@click.option("--ga-manage-ssh", is_flag=True, help="Cloud-init: let the guest agent manage authorized keys.")
@click.option(
    "--cloud-init",
    type=click.Choice(["nocloud", "configdrive", "none"], case_sensitive=False),
    default="nocloud",
    show_default=True,
    help="Cloud-init data source.",
)
@click.option("--cloud-init-user-data", metavar="BASE64", help="User data; replaces the flags above.")
@click.option("--cloud-init-network-data", metavar="BASE64", help="Network data.")
@format_option("yaml")
def vm(
    settings: CliSettings,
    name: str | None,
    run_strategy: str,
    termination_grace_period: int,
    memory: str,
    cpus: int | None,
    containerdisks: tuple[str, ...],
    claims: tuple[str, ...],
    user: str | None,
    password_file: str | None,
    ssh_keys: tuple[str, ...],
    ga_manage_ssh: bool,
    cloud_init: str,
    cloud_init_user_data: str | None,
    cloud_init_network_data: str | None,
    output: str,
) -> None:
    """Print a VirtualMachine manifest for kubectl apply.

    \b
    Examples:
      hyperctl create vm --name=myvm --memory=1Gi --volume-containerdisk=src:quay.io/containerdisks/fedora:latest
      hyperctl create vm --name=myvm --volume-pvc=src:mydisk,bootorder:1 --user=me --ssh-key="$(cat id.pub)" |
        kubectl apply -f -
    """  # fmt: skip
    from cli import manifest

    made = any((user, password_file, ssh_keys, ga_manage_ssh))
    if cloud_init_user_data and made:
        raise CliError(
            "--cloud-init-user-data cannot be combined with --user, --password-file, --ssh-key or --ga-manage-ssh"
        )
    for flag, data in (("user", cloud_init_user_data), ("network", cloud_init_network_data)):
        _check_base64(f"--cloud-init-{flag}-data", data)
    password = _password(password_file) if password_file else None
    if password:
        click.echo("warning: --password-file: the manifest contains the password in plain text", err=True)
    cloud_init_flags = manifest.CloudInit(
        source=cloud_init.lower(),
        user=user,
        password=password,
        ssh_keys=[key.strip() for keys in ssh_keys for key in keys.split(",") if key.strip()],
        agent_keys=ga_manage_ssh,
        user_data=cloud_init_user_data,
        network_data=cloud_init_network_data,
    )
    if cloud_init_flags.source == "none" and cloud_init_flags.wanted:
        click.echo("warning: --cloud-init=none: the other cloud-init flags have no effect", err=True)
    vm_options = manifest.VmOptions(
        name=name or random_name(),
        namespace=settings.namespace,
        run_strategy=run_strategy,
        grace_seconds=termination_grace_period,
        memory=memory,
        cpus=cpus,
        containerdisks=containerdisks,
        claims=claims,
        cloud_init=cloud_init_flags,
    )
    show(manifest.machine(vm_options), output)


def _check_base64(flag: str, data: str | None) -> None:
    try:
        base64.b64decode(data or "", validate=True)
    except binascii.Error as error:
        raise CliError(f"{flag} is not base64 ({error}); encode it with: base64 -w0 FILE") from error


def _password(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except (OSError, ValueError) as error:
        raise CliError(f"--password-file: cannot read {file}: {error}") from error
