"""Loads kubeconfig files as kubectl does: merging, choice of a context, overriding flags, exec plugins.

Sources: client-go's loading rules
(https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/) and its ExecCredential protocol
(client.authentication.k8s.io, v1 and v1beta1).
"""

import asyncio
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import Cluster, Context, User, UserExec
from lightkube.core.exceptions import ConfigError as ConfigError

from kit import connection
from kit.connection import ApiConnection, Credentials

HOME_FILE = "~/.kube/config"
_FILES = {
    "clusters": ("cluster", ("certificate-authority",)),
    "users": ("user", ("client-certificate", "client-key", "tokenFile")),
    "contexts": ("context", ()),
}
_UNSUPPORTED = ("tls-server-name", "proxy-url")
_PLUGIN_API = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


@dataclass(frozen=True)
class KubeconfigFlags:
    """Command-line flags that override the kubeconfig. None: not given."""

    kubeconfig: str | None = None
    context: str | None = None
    cluster: str | None = None
    user: str | None = None
    namespace: str | None = None
    server: str | None = None
    token: str | None = None
    certificate_authority: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    insecure: bool = False


def load(choice: KubeconfigFlags) -> ApiConnection:
    """The connection from kubeconfig and flags; without a kubeconfig, from the pod's service account.

    Raises ConfigError.
    """
    files = _files(choice.kubeconfig)
    try:
        config = _chosen(_merged(files), choice) if files or choice.server else _in_cluster(choice)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{_names(files)}: {error}") from error
    plugin = config.user.exec if config.user and not _token(config.user) else None
    with warnings.catch_warnings():
        # httpx warns about disabled verification, which the user has requested.
        warnings.simplefilter("ignore")
        try:
            return connection.connection_of(config, PluginCredentials(plugin) if plugin else None)
        except OSError as error:
            raise ConfigError(f"cannot read the certificates of context {config.context_name!r}: {error}") from error


def _in_cluster(choice: KubeconfigFlags) -> SingleConfig:
    """The configuration from the pod's service account."""
    try:
        config = KubeConfig.from_service_account().get()
    except (ConfigError, KeyError):
        config = None
    if config is None:
        raise ConfigError("no kubeconfig found: set KUBECONFIG or pass --kubeconfig")
    context = Context(
        cluster=config.context.cluster, user=config.context.user, namespace=choice.namespace or config.namespace
    )
    return config._replace(context=context)


def _token(user: User) -> str | None:
    return user.token or user.token_file


def _files(explicit: str | None) -> list[Path]:
    """The files to read, in order: from the flag, else the existing ones of $KUBECONFIG, else HOME_FILE."""
    if explicit:
        path = Path(explicit).expanduser()
        if not path.is_file():
            raise ConfigError(f"kubeconfig {explicit} does not exist")
        return [path]
    listed = os.environ.get("KUBECONFIG", "")
    paths = [Path(word).expanduser() for word in listed.split(os.pathsep) if word] or [Path(HOME_FILE).expanduser()]
    found = [path for path in paths if path.is_file()]
    if listed and not found:
        raise ConfigError(f"kubeconfig {listed} of $KUBECONFIG does not exist")
    return found


def _names(files: Sequence[Path]) -> str:
    return os.pathsep.join(map(str, files)) or "the kubeconfig"


def _merged(files: Sequence[Path]) -> dict[str, Any]:
    """Merges kubeconfig files: for each name and the current context, the first occurrence wins."""
    merged: dict[str, Any] = {"clusters": {}, "users": {}, "contexts": {}}
    for path in files:
        document = _read(path)
        merged.setdefault("current-context", document.get("current-context") or None)
        merged["current-context"] = merged["current-context"] or document.get("current-context")
        for listing, (inner, names) in _FILES.items():
            for entry in document.get(listing) or ():
                body = dict(entry.get(inner) or {})
                for name in names:
                    if body.get(name):
                        body[name] = str(path.parent.absolute() / body[name])
                merged[listing].setdefault(entry.get("name"), body)
    return merged


def _read(path: Path) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read kubeconfig {path}: {' '.join(str(error).split())}") from error
    if document is None:
        return {}
    lists = isinstance(document, dict) and all(
        isinstance(entry, dict) for listing in _FILES for entry in document.get(listing) or ()
    )
    if not lists:
        raise ConfigError(f"{path} is not a kubeconfig: clusters, users and contexts must be lists of objects")
    return document  # type: ignore[no-any-return]


def _chosen(merged: Mapping[str, Any], choice: KubeconfigFlags) -> SingleConfig:
    """The selected context of the merged files, with flags applied."""
    name = choice.context or merged.get("current-context")
    context = _named(merged, "contexts", name) if name else {}
    if not name and not choice.server and not choice.cluster:
        raise ConfigError("the kubeconfig has no current context: pass --context")
    cluster_name = choice.cluster or context.get("cluster")
    user_name = choice.user or context.get("user")
    cluster = dict(_named(merged, "clusters", cluster_name)) if cluster_name else {}
    user = dict(_named(merged, "users", user_name)) if user_name else {}
    _put(cluster, server=choice.server, **{"certificate-authority": _absolute(choice.certificate_authority)})
    if choice.certificate_authority:
        cluster.pop("certificate-authority-data", None)
    if choice.insecure:
        cluster = {"server": cluster.get("server", ""), "insecure-skip-tls-verify": True}
    if choice.token:
        user = {key: value for key, value in user.items() if key.startswith("client-")} | {"token": choice.token}
    if choice.client_certificate:
        user = {"client-certificate": _absolute(choice.client_certificate), "client-key": _absolute(choice.client_key)}
    for field in _UNSUPPORTED:
        if cluster.get(field):
            raise ConfigError(f"cluster {cluster_name!r} of the kubeconfig has {field}, which is not supported")
    return SingleConfig(
        context_name=str(name or ""),
        context=Context(
            cluster=str(cluster_name or ""), user=user_name, namespace=choice.namespace or context.get("namespace")
        ),
        cluster=msgspec.convert(cluster, Cluster),
        user=msgspec.convert(user, User),
    )


def _put(body: dict[str, Any], **values: str | None) -> None:
    body.update({key: value for key, value in values.items() if value})


def _absolute(path: str | None) -> str | None:
    return str(Path(path).expanduser().absolute()) if path else None


def _named(merged: Mapping[str, Any], listing: str, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] | None = merged[listing].get(name)
    if found is None:
        known = ", ".join(sorted(filter(None, merged[listing]))) or "none"
        raise ConfigError(f"the kubeconfig has no {_FILES[listing][0]} {name!r}; it has: {known}")
    return found


class PluginCredentials(Credentials):
    """A bearer token from an exec plugin of the kubeconfig, which is run again when the token is refused."""

    def __init__(self, plugin: UserExec) -> None:
        super().__init__(None)
        self._plugin = plugin
        self._headers: dict[str, str] | None = None

    async def headers(self, renew: bool = False) -> dict[str, str]:
        """The Authorization header. Raises ConfigError if the plugin is missing, fails or returns no token."""
        if self._headers is None or renew:
            self._headers = {"Authorization": f"Bearer {await self._token()}"}
        return self._headers

    async def _token(self) -> str:
        plugin = self._plugin
        if plugin.apiVersion not in _PLUGIN_API:
            raise ConfigError(f"credential plugin {plugin.command}: apiVersion {plugin.apiVersion} is not supported")
        output = await self._run(plugin)
        try:
            status = json.loads(output)["status"]
            token = status.get("token")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"credential plugin {plugin.command} printed no ExecCredential") from error
        if not isinstance(token, str) or not token:
            raise ConfigError(f"credential plugin {plugin.command} returned no token; certificates are not supported")
        return token

    async def _run(self, plugin: UserExec) -> bytes:
        asked = {
            "apiVersion": plugin.apiVersion,
            "kind": "ExecCredential",
            "spec": {"interactive": sys.stdin.isatty()},
        }
        added = {item.name: item.value for item in plugin.env or ()}
        environment = {**os.environ, **added, "KUBERNETES_EXEC_INFO": json.dumps(asked)}
        try:
            process = await asyncio.create_subprocess_exec(
                plugin.command, *(plugin.args or ()), env=environment, stdout=asyncio.subprocess.PIPE
            )
        except OSError as error:
            hint = f" ({plugin.installHint})" if plugin.installHint else ""
            raise ConfigError(f"cannot run credential plugin {plugin.command}: {error.strerror}{hint}") from error
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise ConfigError(f"credential plugin {plugin.command} failed with exit code {process.returncode}")
        return output
