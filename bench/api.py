"""A minimal Kubernetes client for benchmarks: requests, and watches that record the arrival time of each event.

Uses the standard library only, not kit.kube: a fault in that client must not affect the measurement.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER_AGENT = "bench/1"
Object = dict[str, Any]


class ApiFailure(Exception):
    """An error response of the API server. `status` is the HTTP status, the text its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ApiServerAddress:
    """Address, TLS context and token for the API server."""

    host: str
    port: int
    tls: ssl.SSLContext
    token: str

    def connect(self, timeout: float | None = 60.0) -> http.client.HTTPSConnection:
        """A new connection; requests on it are sent sequentially."""
        return http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=timeout)

    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        basic = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        return basic | ({"Authorization": f"Bearer {self.token}"} if self.token else {})


def server(kubeconfig: Path) -> ApiServerAddress:
    """The current context of a kubeconfig, read with `kubectl config view`.

    Raises ApiFailure if that fails.
    """
    command = [
        "kubectl",
        f"--kubeconfig={kubeconfig}",
        "config",
        "view",
        "--raw",
        "--flatten",
        "--minify",
        "-o",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ApiFailure(0, f"{kubeconfig}: {done.stderr.strip()}")
    view = json.loads(done.stdout)
    cluster, user = view["clusters"][0]["cluster"], view["users"][0]["user"]
    address = urllib.parse.urlsplit(cluster["server"])
    authority = cluster.get("certificate-authority-data", "")
    context = ssl.create_default_context(cadata=base64.b64decode(authority).decode() if authority else None)
    if "client-certificate-data" in user:
        # load_cert_chain takes files only; the temporary file has mode 0600 and is deleted at once.
        with tempfile.NamedTemporaryFile() as pair:
            for part in ("client-certificate-data", "client-key-data"):
                pair.write(base64.b64decode(user[part]) + b"\n")
            pair.flush()
            context.load_cert_chain(pair.name)
    return ApiServerAddress(address.hostname or "", address.port or 443, context, user.get("token", ""))


class BenchApi:
    """Requests on one persistent connection. Not thread-safe."""

    def __init__(self, server: ApiServerAddress) -> None:
        self.server = server
        self._connection = server.connect()

    def request(self, method: str, path: str, body: Object | None = None, kind: str = "application/json") -> bytes:
        """Send one request and return the body. Raises ApiFailure for status 400 and above."""
        data = json.dumps(body).encode() if body is not None else None
        headers = self.server.headers() | ({"Content-Type": kind} if data else {})
        try:
            self._connection.request(method, path, data, headers)
            response = self._connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # The server closed an idle connection before anything was sent, so a retry is safe.
            self._connection = self.server.connect()
            self._connection.request(method, path, data, headers)
            response = self._connection.getresponse()
        answer = response.read()
        if response.status >= 400:
            raise ApiFailure(response.status, f"{method} {path}: {_message(answer)}")
        return answer

    def get(self, path: str) -> Object:
        """An object or a list."""
        found: Object = json.loads(self.request("GET", path))
        return found

    def find(self, path: str) -> Object | None:
        """An object, or None if it does not exist."""
        try:
            return self.get(path)
        except ApiFailure as failure:
            if failure.status == 404:
                return None
            raise

    def items(self, path: str) -> list[Object]:
        """The objects of a list."""
        found: list[Object] = self.get(path).get("items", [])
        return found

    def create(self, path: str, body: Object) -> Object:
        """POST to a collection."""
        made: Object = json.loads(self.request("POST", path, body))
        return made

    def patch(self, path: str, body: Object) -> Object:
        """Merge patch."""
        patched: Object = json.loads(self.request("PATCH", path, body, "application/merge-patch+json"))
        return patched

    def delete(self, path: str) -> None:
        """Delete; does nothing if the object does not exist."""
        try:
            self.request("DELETE", path)
        except ApiFailure as failure:
            if failure.status != 404:
                raise


def _message(answer: bytes) -> str:
    try:
        return str(json.loads(answer).get("message", answer[:300]))
    except (ValueError, AttributeError):
        return answer[:300].decode("utf-8", "replace")


Listener = Callable[[str, Object, float], None]
"""Called with the event's type (ADDED, MODIFIED, DELETED), the object, and time.monotonic() of its arrival."""


class Watch:
    """A watch in its own thread, from construction until `close`."""

    def __init__(self, server: ApiServerAddress, path: str, listener: Listener) -> None:
        self.failure: str | None = None
        self._closing = False
        self._listener = listener
        version = BenchApi(server).get(f"{path}?limit=1")["metadata"]["resourceVersion"]
        query = urllib.parse.urlencode({"watch": "1", "resourceVersion": version, "timeoutSeconds": "7200"})
        self._connection = server.connect(timeout=None)
        self._connection.request("GET", f"{path}?{query}", headers=server.headers())
        self._response = self._connection.getresponse()
        if self._response.status >= 400:
            raise ApiFailure(self._response.status, f"watch {path}: {_message(self._response.read())}")
        # close() of a response blocks while it is being read; shutting down the socket unblocks the reader.
        self._socket: socket.socket | None = self._connection.sock
        self._thread = threading.Thread(target=self._read, name=f"watch {path}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while line := self._response.readline():
                arrived = time.monotonic()
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiFailure(0, _message(json.dumps(event["object"]).encode()))
                self._listener(event["type"], event["object"], arrived)
            raise ApiFailure(0, "the API server ended the watch")
        except Exception as error:
            if not self._closing:
                self.failure = f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """End the watch."""
        self._closing = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._connection.close()
