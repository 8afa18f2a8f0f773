"""A minimal API server client for bringing a cluster up: no client library, one connection per call."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.console import ClusterError

Json = dict[str, Any]


class ApiError(ClusterError):
    """The API server refused a call. `status` is the HTTP status, 0 when there was no answer."""

    def __init__(self, what: str, status: int = 0) -> None:
        super().__init__(what, remedy="see 'python -m cluster logs kube-apiserver'")
        self.status = status


class ClusterApi:
    """Calls the API server that a kubeconfig of `pki.kubeconfig` names. Connection problems are ApiError, status 0."""

    def __init__(self, kubeconfig: Path, *, timeout: float = 5.0) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server: str = cluster["server"]
        self.timeout = timeout
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile(prefix="client-", dir=kubeconfig.parent) as pair:
            for name in ("client-certificate-data", "client-key-data"):
                pair.write(base64.b64decode(user[name]))
            pair.flush()
            context.load_cert_chain(pair.name)
        # An http_proxy in the environment is for outside addresses only.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a request; the decoded JSON of the answer, or its text. Errors: ApiError."""
        request = urllib.request.Request(
            self.server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "hyperlet-cluster"},
        )
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            detail = error.read().decode("utf-8", "replace")
            raise ApiError(f"{method} {path}: {error.code} {_message(detail)}", error.code) from error
        except (OSError, ssl.SSLError) as error:
            raise ApiError(f"{method} {path}: no answer from {self.server} ({error})") from error
        try:
            return json.loads(content)
        except ValueError:
            return content.decode("utf-8", "replace")

    def get(self, path: str) -> Any:
        """GET. Errors: ApiError."""
        return self.call("GET", path)

    def ensure(self, path: str, body: Mapping[str, Any]) -> bool:
        """POST an object unless it exists; whether it was created. Errors: ApiError."""
        try:
            self.call("POST", path, body)
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        return True

    def is_ready(self) -> bool:
        """Whether /readyz answers ok."""
        try:
            return bool(self.get("/readyz") == "ok")
        except ApiError:
            return False

    def ready_nodes(self) -> dict[str, bool]:
        """Node name → whether its Ready condition is True. Empty when the server does not answer."""
        try:
            items = self.get("/api/v1/nodes")["items"]
        except ApiError:
            return {}
        return {item["metadata"]["name"]: is_node_ready(item) for item in items}

    def exists(self, path: str) -> bool:
        """Whether GET on the path succeeds."""
        try:
            self.get(path)
        except ApiError:
            return False
        return True


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]


def is_node_ready(node: Mapping[str, Any]) -> bool:
    """Whether a Node object's Ready condition is True."""
    conditions = node.get("status", {}).get("conditions", [])
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
