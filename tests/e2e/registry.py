"""Registries inside the cluster: distribution's program from Debian, in a pod, with a name on every node.

Kubelets pull from it, so it has a Service address, which is in the nodes' /etc/hosts. Its certificate is signed by an
authority of its own, which each node's containerd is told of in `certs.d`. It may ask for a password.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import io
import json
import os
import re
import secrets
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from images.archive import ArchiveEntry, write_archive
from tests.e2e.support import ROOT, E2eNamespace, Json, project
from tests.waiting import wait_for

PROGRAM = Path("/usr/bin/docker-registry")
NODES = ("node1", "node2")
PORT = 5000
PULL_RECORDS = "/var/lib/kubelet/image_manager/pulled"
USER, PASSWORD = "puller", "letmein"
HTPASSWD = f"{USER}:$2b$04$dXGIpwCpnPoXy/ZSVh28QuOdEYFBSCtIaheKpePOxYoTsJhBCYtz.\n"
CONFIG = """\
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: /var/lib/registry}, delete: {enabled: true}}
"""


@dataclass
class Registry:
    """A registry that serves. `name` is the host in its images' references, such as open-a1b2c3.example."""

    name: str
    address: str
    """Where it is reached, from the nodes and from this machine."""
    folder: Path
    """Of this machine: the authority's certificate, the client's configuration, images to push."""
    authority: bytes
    """Its certificate, PEM."""
    locked: bool
    """It asks for USER and PASSWORD."""

    def reference(self, path: str) -> str:
        """`disks/a:1` → the whole reference."""
        return f"{self.name}/{path}"

    def environment(self) -> dict[str, str]:
        """Environment of podman and skopeo: the trusted authority, and the credentials file."""
        trusted = self.folder / "authority.crt"
        trusted.write_bytes(self.authority)
        return {**os.environ, "SSL_CERT_FILE": str(trusted), "REGISTRY_AUTH_FILE": str(self.login())}

    def run_on_host(self, *words: str, **environment: str) -> str:
        """Output of a command on this machine, where the name leads to the registry. Raises AssertionError."""
        hosts = self.folder / "hosts"
        hosts.write_text(f"{Path('/etc/hosts').read_text()}\n{self.host_line}\n")
        script = f'mount --bind {hosts} /etc/hosts && exec "$@"'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", *words]
        done = subprocess.run(
            command, cwd=ROOT, env={**self.environment(), **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    @property
    def host_line(self) -> str:
        """Its line in /etc/hosts."""
        return f"{self.address} {self.name}"

    def login(self) -> Path:
        """The file that `podman login` writes."""
        path = self.folder / "auth.json"
        path.write_text(json.dumps(credentials(self.name) if self.locked else {"auths": {}}))
        return path

    def push(self, path: str, entries: Sequence[ArchiveEntry]) -> str:
        """Put an image of these files into the registry, over what has that name; the reference."""
        archive = self.folder / "image.tar"
        write_archive(f"hyperlet.local/{path}", list(entries), archive)
        return self.push_archive(path, archive)

    def push_archive(self, path: str, archive: Path) -> str:
        """Put the image of an archive into the registry, as an image of its own; the reference."""
        reference = self.reference(path)
        own = self.folder / "own-image.tar"
        relabelled(archive, own, {"registry": self.name})
        self.run_on_host("skopeo", "copy", "--quiet", f"docker-archive:{own}", f"docker://{reference}")
        return reference

    def pull_secret(self, name: str, password: str = PASSWORD) -> Json:
        """A Secret of the kind that `kubectl create secret docker-registry` makes."""
        config = json.dumps(credentials(self.name, password=password))
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": config},
        }

    def add_to_nodes(self) -> None:
        """Tell the containerd of every node what lies behind the name, as an administrator does."""
        place = f"/etc/containerd/certs.d/{self.name}"
        hosts = f'server = "https://{self.name}"\nca = "{place}/ca.crt"\n'
        for node in NODES:
            write(node, f"{place}/hosts.toml", hosts.encode())
            write(node, f"{place}/ca.crt", self.authority)
            inside(node, f"echo '{self.host_line}' >> /etc/hosts")

    def remove_from_nodes(self) -> None:
        """Remove the registry's name and images from the nodes."""
        for node in NODES:
            listed = inside(node, "ctr -n k8s.io images list -q").split()
            found = [each for each in listed if each.startswith(f"{self.name}/")]
            if found:
                inside(node, f"ctr -n k8s.io images rm {' '.join(found)}")
            inside(node, f"rm -rf /etc/containerd/certs.d/{self.name}; sed -i '/ {self.name}$/d' /etc/hosts")

    def clear_pull_records(self) -> None:
        """Remove the kubelets' pull records of images that are also on the nodes under another name.

        With the records, kubelets would pull those images again. A kubelet caches them in memory, so it is restarted.
        """
        for node in NODES:
            noted = f"grep -lF {self.name} {PULL_RECORDS}/* 2>/dev/null"
            if inside(node, f"{noted}; true"):
                inside(node, f"rm $({noted}); kill -KILL $(pidof kubelet)")


def relabelled(archive: Path, target: Path, labels: dict[str, str]) -> None:
    """Write the image of a Docker archive with more labels, which makes it another image.

    A kubelet that has pulled an image asks for credentials when the same content is used by another name (1.35 on), so
    a pulled copy of a preloaded image would make the preloaded one unusable for other tests.
    """
    with tarfile.open(archive) as source, tarfile.open(target, "w") as made:
        listing = json.load(source.extractfile("manifest.json") or io.BytesIO())
        name = listing[0]["Config"]
        for member in source.getmembers():
            content = source.extractfile(member)
            if member.name == name and content is not None:
                config = json.load(content)
                known = config.setdefault("config", {}).get("Labels") or {}
                config["config"]["Labels"] = {**known, **labels}
                body = json.dumps(config).encode()
                member.size = len(body)
                content = io.BytesIO(body)
            made.addfile(member, content)


def credentials(*hosts: str, password: str = PASSWORD) -> Json:
    """The content of a Docker configuration file."""
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    return {"auths": {host: {"username": USER, "password": password, "auth": auth} for host in hosts}}


def inside(node: str, command: str) -> str:
    """What a shell command prints on a node."""
    return project("cluster", "exec", node, "--", "sh", "-c", command)


def write(node: str, path: str, content: bytes) -> None:
    """Write a file on a node."""
    text = base64.b64encode(content).decode()
    inside(node, f"mkdir -p $(dirname {path}) && echo {text} | base64 -d > {path}")


def load_registry_image(folder: Path) -> str:
    """Load an image of the registry's program and its libraries onto the nodes; the reference."""
    listed = subprocess.run(["ldd", str(PROGRAM)], capture_output=True, text=True, check=True).stdout
    files = [PROGRAM, *(Path(path) for path in re.findall(r"(?:=>\s+)?(/\S+)\s+\(0x", listed))]
    entries = [ArchiveEntry(str(path).lstrip("/"), path.resolve(), mode=0o755) for path in files]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    reference = f"hyperlet.local/test-registry:{digest}"
    write_archive(reference, entries, folder / "registry.tar")
    project("cluster", "load", str(folder / "registry.tar"))
    return reference


def create_certificates(host: str) -> tuple[bytes, bytes, bytes]:
    """An authority's certificate, and a server's certificate and key for its name, as PEM."""
    now = datetime.datetime.now(datetime.UTC)

    def sign(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey) -> bytes:
        own = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        theirs = [x509.NameAttribute(NameOID.COMMON_NAME, issuer)]
        builder = (
            x509.CertificateBuilder(x509.Name(theirs), x509.Name(own), key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        )
        return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.PrivateFormat.PKCS8
    key = own.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption())
    return sign("test registry", root, "test registry", root), sign("registry", own, "test registry", root), key


@contextlib.contextmanager
def run_registry(space: E2eNamespace, title: str, folder: Path, *, locked: bool = False) -> Iterator[Registry]:
    """A registry in a namespace, known to the nodes; open, or asking for USER and PASSWORD."""
    assert PROGRAM.is_file(), "docker-registry is not installed: run 'python -m cluster deps --tests'"
    folder.mkdir(parents=True, exist_ok=True)
    # The port that a reference without one stands for.
    ports = [{"name": "registry", "protocol": "TCP", "port": 443, "targetPort": PORT}]
    service = {"selector": {"app": title}, "ports": ports}
    space.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": title}, "spec": service})
    address = space.kubectl("get", "service", title, "-o", "jsonpath={.spec.clusterIP}")
    name = f"{title}-{secrets.token_hex(3)}.example"
    authority, served, key = create_certificates(name)
    made = Registry(name, address, folder, authority, locked)
    files = {"config.yml": CONFIG, "htpasswd": HTPASSWD, "tls.crt": served.decode(), "tls.key": key.decode()}
    settings = {
        "REGISTRY_HTTP_ADDR": f":{PORT}",
        "REGISTRY_HTTP_TLS_CERTIFICATE": "/etc/registry/tls.crt",
        "REGISTRY_HTTP_TLS_KEY": "/etc/registry/tls.key",
    }
    if locked:
        settings |= {
            "REGISTRY_AUTH": "htpasswd",
            "REGISTRY_AUTH_HTPASSWD_REALM": title,
            "REGISTRY_AUTH_HTPASSWD_PATH": "/etc/registry/htpasswd",
        }
    container = {
        "name": "registry",
        "image": load_registry_image(folder),
        "command": [str(PROGRAM), "serve", "/etc/registry/config.yml"],
        "env": [{"name": name, "value": value} for name, value in settings.items()],
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/registry"},
            {"name": "data", "mountPath": "/var/lib/registry"},
        ],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
    }
    pod = {
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": [{"name": "config", "secret": {"secretName": title}}, {"name": "data", "emptyDir": {}}],
    }
    space.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": title}, "stringData": files},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": title, "labels": {"app": title}}, "spec": pod},
    )
    try:
        space.kubectl("wait", "--for=condition=Ready", "--timeout=60s", f"pod/{title}")
        made.add_to_nodes()
        wait_for(lambda: reachable(made), f"the registry {title} answers at {made.address}")
        yield made
    finally:
        made.remove_from_nodes()


def reachable(registry: Registry) -> bool:
    """Whether the registry answers on this host, over the Service."""
    command = ["curl", "-sk", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}", f"https://{registry.address}/v2/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout == ("401" if registry.locked else "200")
