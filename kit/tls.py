"""Keys, certificates and TLS contexts. The only module that imports `cryptography`.

All keys are on curve P-256; certificates are X.509 v3 (RFC 5280). Times are in seconds since the epoch, UTC.
"""

import datetime
import os
import ssl
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATED = 3600.0
"""Seconds by which notBefore is in the past, because clocks of nodes differ."""
COMMON_NAME_LIMIT = 64
"""Maximum number of characters (ub-common-name of RFC 5280, appendix A.1)."""


class TlsError(ValueError):
    """An invalid key, certificate or signing request."""


class TlsIdentity(NamedTuple):
    """A private key with its certificate, and the trusted authorities; all PEM."""

    certificate: bytes
    key: bytes
    roots: bytes


class KeyPair(NamedTuple):
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


class Names(NamedTuple):
    """The subjectAltName of a certificate. The first entry is also its common name."""

    dns: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()


def new_key() -> bytes:
    """A new private key as unencrypted PKCS #8 PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def authority(common: str, now: float, seconds: float) -> KeyPair:
    """A new certificate authority that can sign leaf certificates only (path length 0)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common)
    built = (
        _builder(name, name, key.public_key(), now, seconds)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(_pem(built), _key_pem(key))


def request(key: bytes, common: str) -> bytes:
    """A certificate signing request (PKCS #10, PEM) for a private key. The signer chooses the certificate's names."""
    private = _private(key)
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(common))
    return builder.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(pem: bytes) -> bytes:
    """The public key (PEM) in a signing request whose signature proves possession of the private key.

    The rest of the request is ignored. Raises TlsError for an invalid request, a bad signature, or a key that is not on
    P-256.
    """
    try:
        asked = x509.load_pem_x509_csr(pem)
        key, proven = asked.public_key(), asked.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise TlsError("not a certificate signing request in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TlsError("the signing request's key is not on curve P-256")
    if not proven:
        raise TlsError("the signing request is not signed with its own key")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_key(key: bytes) -> bytes:
    """The public key of a private key; both PEM."""
    return (
        _private(key)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def issue(ca: KeyPair, public: bytes, names: Names, *, client: bool, now: float, seconds: float) -> bytes:
    """A leaf certificate (PEM) for a public key (PEM), either for TLS clients or for TLS servers."""
    signer = x509.load_pem_x509_certificate(ca.certificate)
    key = serialization.load_pem_public_key(public)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TlsError("the public key is not on curve P-256")
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    alternatives = [*map(x509.DNSName, names.dns), *map(x509.UniformResourceIdentifier, names.uris)]
    common = next(iter((*names.dns, *names.uris)))
    issuer_key = signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    built = (
        _builder(_name(common), signer.subject, key, now, seconds)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key),
            critical=False,
        )
        .sign(_private(ca.key), hashes.SHA256())
    )
    return _pem(built)


def check_pair(pair: KeyPair) -> None:
    """Raises TlsError if certificate or key cannot be read or do not match."""
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
    except ValueError as error:
        raise TlsError("not a certificate in PEM") from error
    mine, theirs = _private(pair.key).public_key(), certificate.public_key()
    if not isinstance(theirs, ec.EllipticCurvePublicKey) or mine.public_numbers() != theirs.public_numbers():
        raise TlsError("the certificate does not match the private key")


def expiry(certificate: bytes) -> float:
    """notAfter of a certificate (the first of a PEM chain), in seconds since the epoch."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()


def uris(certificate: bytes) -> list[str]:
    """The URIs in a certificate's subjectAltName."""
    found = x509.load_pem_x509_certificate(certificate).extensions
    try:
        alternatives = found.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return alternatives.get_values_for_type(x509.UniformResourceIdentifier)


def bundle(certificates: Iterable[bytes]) -> bytes:
    """Concatenates PEM certificates."""
    return b"".join(pem.strip() + b"\n" for pem in certificates)


def server_context(pair: KeyPair, clients: bytes | None = None) -> ssl.SSLContext:
    """A server's TLS context: TLS 1.2 or newer.

    With `clients` (PEM) it requests client certificates of those authorities; clients without one are accepted.
    """
    context = _server_context()
    _load(context, pair)
    if clients:
        context.load_verify_locations(cadata=clients.decode("ascii"))
    return context


def switching_context(choose: Callable[[], ssl.SSLContext | None]) -> ssl.SSLContext:
    """A server's TLS context that calls `choose` in every handshake, so that certificates can be rotated while
    listening. Handshakes fail while it returns None."""

    def switch(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> int | None:
        chosen = choose()
        if chosen is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = chosen
        return None

    context = _server_context()
    context.sni_callback = switch  # also called for clients that send no SNI
    return context


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # No session resumption: it would keep client identities verified by authorities that are no longer trusted.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    # Set here because a context chosen during the handshake provides its authorities, but not this setting.
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(roots: bytes) -> ssl.SSLContext:
    """A client's TLS context that trusts only these authorities (PEM): TLS 1.2 or newer, with host name check."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=roots.decode("ascii"))
    return context


def _load(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Loads the pair through a memfd, because Python's ssl reads keys only from files."""
    with os.fdopen(os.memfd_create("key", os.MFD_CLOEXEC), "wb") as file:
        file.write(pair.key + pair.certificate)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TlsError("not a private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TlsError("the private key is not on curve P-256")
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, seconds: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_date(now - BACKDATED))
        .not_valid_after(_date(now + seconds))
    )


def _date(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:COMMON_NAME_LIMIT])])


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=authority, crl_sign=authority, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
