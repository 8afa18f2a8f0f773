"""Keys and certificates: made, read and loaded. The only module that knows `cryptography`.

All keys are on the curve P-256; certificates are X.509 v3 as RFC 5280 has them. Times are seconds since 1970, in UTC.
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
"""Seconds by which a certificate is valid before it is made: clocks of nodes differ."""
COMMON_NAME_LIMIT = 64
"""Characters (ub-common-name of RFC 5280, appendix A.1)."""


class TlsError(ValueError):
    """A key, certificate or request is not what it has to be. The text says why."""


class TlsIdentity(NamedTuple):
    """A private key with its certificate, and the authorities that its owner trusts; all of it PEM."""

    certificate: bytes
    key: bytes
    roots: bytes


class KeyPair(NamedTuple):
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


class Names(NamedTuple):
    """Who a certificate is for (its subjectAltName). The first of all is its common name too."""

    dns: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()


def new_key() -> bytes:
    """A new private key as unencrypted PKCS 8 PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def authority(common: str, now: float, seconds: float) -> KeyPair:
    """A new certificate authority that may sign leaves, and no other authority."""
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
    """A certificate signing request (PKCS 10, PEM) for a private key. What it is signed for is the signer's choice."""
    private = _private(key)
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(common))
    return builder.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(pem: bytes) -> bytes:
    """The public key (PEM) in a signing request whose signature proves that the asker has the private one.

    Nothing else in the request is looked at. Raises TlsError for what is no request, has a bad signature or a key that
    is not on P-256.
    """
    try:
        asked = x509.load_pem_x509_csr(pem)
        key, proven = asked.public_key(), asked.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise TlsError("this is no certificate signing request in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TlsError("the request's key is not on the curve P-256")
    if not proven:
        raise TlsError("the request is not signed with its own key")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_key(key: bytes) -> bytes:
    """The public half of a private key; both PEM."""
    return (
        _private(key)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def issue(ca: KeyPair, public: bytes, names: Names, *, client: bool, now: float, seconds: float) -> bytes:
    """A leaf certificate (PEM) for a public key (PEM): for a TLS client or for a TLS server, never for both."""
    signer = x509.load_pem_x509_certificate(ca.certificate)
    key = serialization.load_pem_public_key(public)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TlsError("only keys on P-256 are signed")
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
    """Raises TlsError if a certificate and a key cannot be read or do not belong together."""
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
    except ValueError as error:
        raise TlsError("this is no certificate in PEM") from error
    mine, theirs = _private(pair.key).public_key(), certificate.public_key()
    if not isinstance(theirs, ec.EllipticCurvePublicKey) or mine.public_numbers() != theirs.public_numbers():
        raise TlsError("the certificate is another key's")


def expiry(certificate: bytes) -> float:
    """When a certificate (the first of a PEM chain) ends."""
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
    """Several certificates as one PEM text."""
    return b"".join(pem.strip() + b"\n" for pem in certificates)


def server_context(pair: KeyPair, clients: bytes | None = None) -> ssl.SSLContext:
    """A server's TLS context: TLS 1.2 or newer.

    With `clients` (PEM) it asks for client certificates of those authorities; a client may come without one.
    """
    context = _server_context()
    _load(context, pair)
    if clients:
        context.load_verify_locations(cadata=clients.decode("ascii"))
    return context


def switching_context(choose: Callable[[], ssl.SSLContext | None]) -> ssl.SSLContext:
    """A server's TLS context that asks for every handshake which context to use, so that certificates can be renewed
    under a listening socket. While there is none, handshakes fail."""

    def switch(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> int | None:
        chosen = choose()
        if chosen is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = chosen
        return None

    context = _server_context()
    context.sni_callback = switch  # called for clients that send no server name too
    return context


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A resumed session would carry on what was verified by authorities that are not believed any more.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    # A context that is swapped in during the handshake brings its authorities along, but not this setting.
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(roots: bytes) -> ssl.SSLContext:
    """A client's TLS context that believes these authorities (PEM) alone: TLS 1.2 or newer, names are checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=roots.decode("ascii"))
    return context


def _load(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Python's ssl reads keys from files only: this one is in memory and has no name."""
    with os.fdopen(os.memfd_create("key", os.MFD_CLOEXEC), "wb") as file:
        file.write(pair.key + pair.certificate)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TlsError("this is no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TlsError("the private key is not on the curve P-256")
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
