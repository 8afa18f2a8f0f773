"""Certificates: issuers, subjects, and the files of a node."""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster import pki


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pki")
    addresses = {"node1": "10.77.0.11", "node2": "10.77.0.12"}
    pki.create(made, "https://10.77.0.1:6443", ["kubernetes", "10.77.0.1"], addresses, made / "kubeconfig")
    return made


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def subject(cert: x509.Certificate) -> tuple[str, str]:
    def first(oid: x509.ObjectIdentifier) -> str:
        found = cert.subject.get_attributes_for_oid(oid)
        return str(found[0].value) if found else ""

    return first(NameOID.COMMON_NAME), first(NameOID.ORGANIZATION_NAME)


def test_kubelet_certificate_satisfies_the_node_authorizer(folder: Path) -> None:
    cert = certificate(folder / "node2" / "kubelet.crt")
    assert subject(cert) == ("system:node:node2", "system:nodes")
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.77.0.12"]
    cert.verify_directly_issued_by(certificate(folder / "ca.crt"))


def test_api_server_and_proxy_client_have_different_authorities(folder: Path) -> None:
    certificate(folder / "apiserver.crt").verify_directly_issued_by(certificate(folder / "ca.crt"))
    proxy = certificate(folder / "front-proxy-client.crt")
    proxy.verify_directly_issued_by(certificate(folder / "front-proxy-ca.crt"))
    with pytest.raises(ValueError, match="issuer"):
        proxy.verify_directly_issued_by(certificate(folder / "ca.crt"))


def test_node_gets_no_authority_key_and_no_file_of_other_nodes(folder: Path) -> None:
    names = {path.name for path in (folder / "node1").iterdir()}
    assert names == {"ca.crt", "kubelet.crt", "kubelet.key", "kubelet.kubeconfig", "kube-proxy.kubeconfig"}
    authority_key = (folder / "ca.key").read_bytes()
    assert all(authority_key not in path.read_bytes() for path in (folder / "node1").iterdir())


def test_private_files_have_owner_permissions_only(folder: Path) -> None:
    for path in [*folder.glob("**/*.key"), *folder.glob("**/*kubeconfig")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_every_key_matches_its_certificate(folder: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pairs = list(folder.glob("**/*.crt"))
    with_key = [path for path in pairs if path.with_suffix(".key").exists()]
    assert len(with_key) >= 6
    for path in with_key:
        context.load_cert_chain(path, path.with_suffix(".key"))


def test_kubeconfig_is_self_contained(folder: Path) -> None:
    config = json.loads((folder / "kubeconfig").read_text())
    user = config["users"][0]["user"]
    cert = x509.load_pem_x509_certificate(base64.b64decode(user["client-certificate-data"]))
    assert subject(cert) == ("kubernetes-admin", "system:masters")
    assert config["clusters"][0]["cluster"]["server"] == "https://10.77.0.1:6443"


def test_service_accounts_have_a_separate_key(folder: Path) -> None:
    text = (folder / "service-account.pub").read_bytes()
    assert text.startswith(b"-----BEGIN PUBLIC KEY-----")
    ca_key = certificate(folder / "ca.crt").public_key()
    assert isinstance(ca_key, ec.EllipticCurvePublicKey)
    assert ca_key.public_numbers() != _public(text).public_numbers()


def _public(pem: bytes) -> ec.EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(pem)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key
