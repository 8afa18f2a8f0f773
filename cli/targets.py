"""What people write for a machine and its ports: `vmi/name/namespace`, `user@vm/name`, `udp/8080:80`."""

from __future__ import annotations

from typing import NamedTuple

from cli.paths import INSTANCES, SHORT, resource_of
from cli.problem import CliError


class Target(NamedTuple):
    """A machine. `resource` is the API's word; `namespace` is None where none was written."""

    resource: str
    name: str
    namespace: str | None

    def words(self, namespace: str) -> str:
        """The unambiguous form, with `namespace` where none was written."""
        return f"{SHORT[self.resource]}/{self.name}/{self.namespace or namespace}"

    def host(self, namespace: str) -> str:
        """A host name for ssh's known_hosts: one line for each machine, as virtctl has it."""
        return f"{SHORT[self.resource]}.{self.name}.{self.namespace or namespace}"


def target_of(text: str) -> Target:
    """`[type/]name[/namespace]`; without a type it is a VMI. Also virtctl's older `type/name.namespace`.

    Raises CliError.
    """
    parts = text.split("/")
    if len(parts) > 3 or "" in parts:
        raise CliError(f"{text!r} is no machine: write vm/name, vmi/name or vmi/name/namespace")
    if len(parts) == 3:
        return Target(resource_of(parts[0]), parts[1], parts[2])
    resource = resource_of(parts[0]) if len(parts) == 2 else INSTANCES
    name, dot, namespace = parts[-1].rpartition(".")
    if dot and (not name or not namespace):
        raise CliError(f"{text!r} is no machine: write vm/name, vmi/name or vmi/name/namespace")
    return Target(resource, name, namespace) if dot else Target(resource, parts[-1], None)


class Forward(NamedTuple):
    """A local port and the machine's port behind it. `protocol` is tcp or udp."""

    protocol: str
    local: int
    remote: int

    @property
    def verb(self) -> str:
        """The subresource."""
        return f"portforward/{self.remote}/{self.protocol}"


def forward_of(text: str) -> Forward:
    """`[protocol/]local[:remote]`. Raises CliError."""
    before, slash, after = text.partition("/")
    protocol, ports = (before.lower(), after) if slash else ("tcp", before)
    if protocol not in ("tcp", "udp"):
        raise CliError(f"{text!r}: the protocol is tcp or udp, not {before!r}")
    local, colon, remote = ports.partition(":")
    return Forward(protocol, _port(local, text, 0), _port(remote if colon else local, text, 1))


def _port(text: str, whole: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= 65535:
        raise CliError(f"{whole!r}: {text!r} is no port; write [protocol/]local[:remote], such as tcp/8080:80")
    return int(text)


class Login(NamedTuple):
    """Whom to be on a machine. `user` is None where none was written."""

    user: str | None
    target: Target


def login_of(text: str) -> Login:
    """`[user@][type/]name[/namespace]`. Raises CliError."""
    user, at, machine = text.rpartition("@")
    if at and not user:
        raise CliError(f"{text!r}: there is no user before the @")
    return Login(user or None, target_of(machine))
