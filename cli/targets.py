"""Syntax of targets and ports on the command line: `vmi/name/namespace`, `user@vm/name`, `udp/8080:80`."""

from __future__ import annotations

from typing import NamedTuple

from cli.paths import INSTANCES, SHORT, resource_of
from cli.problem import CliError


class Target(NamedTuple):
    """A VM or VMI. `resource` is the API resource; `namespace` is None when not given."""

    resource: str
    name: str
    namespace: str | None

    def words(self, namespace: str) -> str:
        """The canonical form, with `namespace` as default."""
        return f"{SHORT[self.resource]}/{self.name}/{self.namespace or namespace}"

    def host(self, namespace: str) -> str:
        """The host name for ssh's known_hosts, unique per VM, like virtctl's."""
        return f"{SHORT[self.resource]}.{self.name}.{self.namespace or namespace}"


def target_of(text: str) -> Target:
    """Parses `[type/]name[/namespace]`; the type defaults to vmi. Also virtctl's older `type/name.namespace`.

    Raises CliError.
    """
    parts = text.split("/")
    if len(parts) > 3 or "" in parts:
        raise CliError(f"invalid target {text!r}: use vm/name, vmi/name or vmi/name/namespace")
    if len(parts) == 3:
        return Target(resource_of(parts[0]), parts[1], parts[2])
    resource = resource_of(parts[0]) if len(parts) == 2 else INSTANCES
    name, dot, namespace = parts[-1].rpartition(".")
    if dot and (not name or not namespace):
        raise CliError(f"invalid target {text!r}: use vm/name, vmi/name or vmi/name/namespace")
    return Target(resource, name, namespace) if dot else Target(resource, parts[-1], None)


class Forward(NamedTuple):
    """A local port and the port of the VM. `protocol` is tcp or udp."""

    protocol: str
    local: int
    remote: int

    @property
    def verb(self) -> str:
        """The subresource path."""
        return f"portforward/{self.remote}/{self.protocol}"


def forward_of(text: str) -> Forward:
    """Parses `[protocol/]local[:remote]`. Raises CliError."""
    before, slash, after = text.partition("/")
    protocol, ports = (before.lower(), after) if slash else ("tcp", before)
    if protocol not in ("tcp", "udp"):
        raise CliError(f"{text!r}: the protocol must be tcp or udp, not {before!r}")
    local, colon, remote = ports.partition(":")
    return Forward(protocol, _port(local, text, 0), _port(remote if colon else local, text, 1))


def _port(text: str, whole: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= 65535:
        raise CliError(f"{whole!r}: invalid port {text!r}; use [protocol/]local[:remote], such as tcp/8080:80")
    return int(text)


class Login(NamedTuple):
    """A target with a user; None when not given."""

    user: str | None
    target: Target


def login_of(text: str) -> Login:
    """Parses `[user@][type/]name[/namespace]`. Raises CliError."""
    user, at, machine = text.rpartition("@")
    if at and not user:
        raise CliError(f"{text!r}: no user before '@'")
    return Login(user or None, target_of(machine))
