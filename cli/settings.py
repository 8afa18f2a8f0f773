"""The global flags: cluster, user and namespace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kit.kubeconfig import KubeconfigFlags


@dataclass(frozen=True)
class CliSettings:
    """Values of the global flags, named like kubectl's. None or empty: use the kubeconfig."""

    kubeconfig: str | None = None
    context: str | None = None
    cluster: str | None = None
    user: str | None = None
    namespace: str | None = None
    server: str | None = None
    token: str | None = None
    impersonate: str | None = None
    impersonate_groups: tuple[str, ...] = ()
    impersonate_uid: str | None = None
    certificate_authority: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    insecure: bool = False
    request_timeout: str | None = None
    verbosity: int = 0

    def choice(self) -> KubeconfigFlags:
        """The flags that select from the kubeconfig, for kit.kubeconfig."""
        from kit.kubeconfig import KubeconfigFlags

        return KubeconfigFlags(**{field.name: getattr(self, field.name) for field in fields(KubeconfigFlags)})

    def words(self) -> list[str]:
        """The flags as command line arguments, for a hyperctl started by another program (ssh's ProxyCommand)."""
        words: list[str] = []
        for option in OPTIONS:
            name = str(option.name)
            value = getattr(self, name)
            if value == getattr(_NONE, name):
                continue
            flag = option.opts[0]
            if option.is_flag:
                words.append(flag)
            else:
                words += [f"{flag}={item}" for item in (value if option.multiple else [value])]
        return words

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CliSettings:
        """Creates settings from the parsed values of OPTIONS."""
        return cls(**values)


_NONE = CliSettings()

OPTIONS: tuple[click.Option, ...] = (
    click.Option(["--kubeconfig"], metavar="FILE", help="The kubeconfig to use instead of $KUBECONFIG."),
    click.Option(["--context"], metavar="NAME", help="The context of the kubeconfig to use."),
    click.Option(["--cluster"], metavar="NAME", help="The cluster of the kubeconfig to use."),
    click.Option(["--user"], metavar="NAME", help="The user of the kubeconfig to use."),
    click.Option(["--namespace", "-n"], metavar="NAME", help="The namespace, instead of the context's."),
    click.Option(["--server", "-s"], metavar="URL", help="The address of the API server."),
    click.Option(["--token"], help="A bearer token to authenticate with."),
    click.Option(["--as", "impersonate"], metavar="USER", help="Act as this user."),
    click.Option(
        ["--as-group", "impersonate_groups"], metavar="GROUP", multiple=True, help="Act as a member of this group."
    ),
    click.Option(["--as-uid", "impersonate_uid"], metavar="UID", help="Act as the user with this UID."),
    click.Option(["--certificate-authority"], metavar="FILE", help="CA certificate of the API server."),
    click.Option(["--client-certificate"], metavar="FILE", help="Client certificate for authentication."),
    click.Option(["--client-key"], metavar="FILE", help="The key of --client-certificate."),
    click.Option(
        ["--insecure-skip-tls-verify", "insecure"],
        is_flag=True,
        help="Do not verify the server's certificate. Insecure.",
    ),
    click.Option(["--request-timeout"], metavar="TIME", help="Timeout of a request, such as 30s. 0: no timeout."),
    click.Option(
        ["--v", "-v", "verbosity"],
        metavar="LEVEL",
        type=int,
        default=0,
        help="Log verbosity. 6: log requests; 9: tracebacks.",
    ),
)
"""The global flags as click options, accepted by every command."""
