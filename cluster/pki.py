"""Keys and certificates of the cluster, and the kubeconfigs made of them. All keys are on the curve P-256.

Usages and names are those of Kubernetes' "PKI certificates and requirements".
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = datetime.timedelta(days=365)
BACKDATED = datetime.timedelta(hours=1)
"""Tolerates a clock that is set back a little."""


@dataclass(frozen=True)
class CertificatePair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS 8 PEM."""
        return private_pem(self.key)

    def write(self, folder: Path, name: str) -> None:
        """Write NAME.crt and NAME.key (readable by the owner only) to a folder."""
        write_private(folder / f"{name}.crt", self.certificate_pem)
        write_private(folder / f"{name}.key", self.key_pem)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as unencrypted PKCS 8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key as PEM; the API server does not accept a PKCS 8 file for it."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


def _name(common: str, organization: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if organization:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def authority(common: str) -> CertificatePair:
    """A new certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common)
    builder = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return CertificatePair(builder.add_extension(_key_usage(ca=True), critical=True).sign(key, hashes.SHA256()), key)


def issue(
    ca: CertificatePair, common: str, organization: str = "", *, names: Sequence[str] = (), server: bool = False
) -> CertificatePair:
    """A key with a certificate of that authority: for a client, and for a server too if `server`.

    names: DNS names and IP addresses for the subjectAltName.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])]
    builder = (
        _builder(_name(common, organization), ca.certificate.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
    return CertificatePair(builder.sign(ca.key, hashes.SHA256()), key)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + VALID)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=not ca, data_encipherment=False,
        key_agreement=False, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def kubeconfig(server: str, ca_pem: bytes, client: CertificatePair) -> str:
    """A self-contained kubeconfig, as JSON (which is YAML)."""

    def text(pem: bytes) -> str:
        return base64.b64encode(pem).decode()

    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": {"server": server, "certificate-authority-data": text(ca_pem)}}],
            "users": [
                {
                    "name": "user",
                    "user": {
                        "client-certificate-data": text(client.certificate_pem),
                        "client-key-data": text(client.key_pem),
                    },
                }
            ],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "user"}}],
            "current-context": "local",
        },
        indent=1,
    )


def create(folder: Path, server: str, api_names: Sequence[str], nodes: dict[str, str], admin: Path) -> None:
    """Make every key, certificate and kubeconfig of a new cluster.

    folder: for the control plane's files; each node's are in a subfolder, without any authority's key.
    server: the API server's URL.  api_names: its names and addresses.  nodes: name → address.
    admin: path of the administrator's kubeconfig.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    ca = authority("cluster-ca")
    ca.write(folder, "ca")
    front = authority("front-proxy-ca")
    write_private(folder / "front-proxy-ca.crt", front.certificate_pem)
    issue(front, "front-proxy-client").write(folder, "front-proxy-client")
    issue(ca, "kube-apiserver", names=api_names, server=True).write(folder, "apiserver")
    issue(ca, "kube-apiserver-kubelet-client", "system:masters").write(folder, "kubelet-client")
    account_key = ec.generate_private_key(ec.SECP256R1())
    write_private(folder / "service-account.key", private_pem(account_key))
    write_private(folder / "service-account.pub", public_pem(account_key))
    for component in ("controller-manager", "scheduler"):
        client = issue(ca, f"system:kube-{component}")
        config = kubeconfig(server, ca.certificate_pem, client)
        write_private(folder / f"{component}.kubeconfig", config.encode())
    for name, address in nodes.items():
        _create_node(folder / name, server, ca, name, address)
    administrator = issue(ca, "kubernetes-admin", "system:masters")
    write_private(admin, kubeconfig(server, ca.certificate_pem, administrator).encode())


def _create_node(folder: Path, server: str, ca: CertificatePair, name: str, address: str) -> None:
    folder.mkdir(exist_ok=True)
    write_private(folder / "ca.crt", ca.certificate_pem)
    kubelet = issue(ca, f"system:node:{name}", "system:nodes", names=[name, address], server=True)
    kubelet.write(folder, "kubelet")
    write_private(folder / "kubelet.kubeconfig", kubeconfig(server, ca.certificate_pem, kubelet).encode())
    proxy = issue(ca, "system:kube-proxy")
    write_private(folder / "kube-proxy.kubeconfig", kubeconfig(server, ca.certificate_pem, proxy).encode())
