"""What the flags that every command has say: which cluster, as whom, where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kit.kubeconfig import KubeconfigFlags


@dataclass(frozen=True)
class CliSettings:
    """The global flags, named as kubectl's. None or empty: what the kubeconfig says."""

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
        """Those that choose from the kubeconfig, for kit.kubeconfig."""
        from kit.kubeconfig import KubeconfigFlags

        return KubeconfigFlags(**{field.name: getattr(self, field.name) for field in fields(KubeconfigFlags)})

    def words(self) -> list[str]:
        """The flags as words of a command line, for a hyperctl that another program starts (ssh's ProxyCommand)."""
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
        """From the parsed values of OPTIONS."""
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
    click.Option(["--certificate-authority"], metavar="FILE", help="Who signed the API server's certificate."),
    click.Option(["--client-certificate"], metavar="FILE", help="A certificate to authenticate with."),
    click.Option(["--client-key"], metavar="FILE", help="The key of --client-certificate."),
    click.Option(
        ["--insecure-skip-tls-verify", "insecure"], is_flag=True, help="Trust whoever answers. For experiments only."
    ),
    click.Option(
        ["--request-timeout"], metavar="TIME", help="Give up a request after this long, such as 30s. 0: never."
    ),
    click.Option(
        ["--v", "-v", "verbosity"], metavar="LEVEL", type=int, default=0, help="6: tell every request; 9: more."
    ),
)
"""The global flags as click knows them; every command accepts them."""
