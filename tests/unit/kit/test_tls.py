"""Keys and certificates: contents of issued ones, and refusal of invalid requests."""

import asyncio
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kit import tls
from kit.tls import KeyPair, Names

HOUR = 3600.0


@pytest.fixture(scope="module")
def ca() -> KeyPair:
    return tls.authority("test authority", time.time(), HOUR)


def leaf(ca: KeyPair, names: Names, *, client: bool = False) -> KeyPair:
    key = tls.new_key()
    issued = tls.issue(ca, tls.public_key(key), names, client=client, now=time.time(), seconds=HOUR)
    return KeyPair(issued, key)


def test_leaf_has_one_extended_key_usage_and_cannot_sign(ca: KeyPair) -> None:
    for client, purpose in ((True, ExtendedKeyUsageOID.CLIENT_AUTH), (False, ExtendedKeyUsageOID.SERVER_AUTH)):
        made = leaf(ca, Names(dns=("a.example",), uris=("hyperlet://gateway",)), client=client)
        found = x509.load_pem_x509_certificate(made.certificate).extensions
        assert list(found.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        assert found.get_extension_for_class(x509.BasicConstraints).value.ca is False
        usage = found.get_extension_for_class(x509.KeyUsage).value
        assert usage.digital_signature and not usage.key_cert_sign
        assert tls.uris(made.certificate) == ["hyperlet://gateway"]
        tls.check_pair(made)


def test_authority_has_path_length_zero(ca: KeyPair) -> None:
    constraints = x509.load_pem_x509_certificate(ca.certificate).extensions.get_extension_for_class(
        x509.BasicConstraints
    )
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0


def test_expiry_matches_requested_lifetime() -> None:
    now = float(int(time.time()))
    assert tls.expiry(tls.authority("short", now, 90).certificate) == now + 90


def test_mismatched_certificate_and_key_are_refused(ca: KeyPair) -> None:
    with pytest.raises(tls.TlsError, match="does not match the private key"):
        tls.check_pair(KeyPair(ca.certificate, tls.new_key()))
    with pytest.raises(tls.TlsError, match="not a certificate in PEM"):
        tls.check_pair(KeyPair(b"nonsense", ca.key))
    with pytest.raises(tls.TlsError, match="not a private key in PEM"):
        tls.check_pair(KeyPair(ca.certificate, b"nonsense"))


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def test_signing_request_contributes_only_its_key() -> None:
    key = tls.new_key()
    assert tls.requested_key(tls.request(key, "anybody")) == tls.public_key(key)


def test_signing_request_with_other_key_type_is_refused() -> None:
    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        with pytest.raises(tls.TlsError, match="P-256"):
            tls.requested_key(request(key))


def test_signing_request_with_bad_signature_is_refused() -> None:
    made = x509.load_pem_x509_csr(tls.request(tls.new_key(), "a"))
    raw = bytearray(made.public_bytes(serialization.Encoding.DER))
    raw[-1] ^= 1
    broken = x509.load_der_x509_csr(bytes(raw)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(tls.TlsError, match="its own key"):
        tls.requested_key(broken)


@pytest.mark.parametrize("body", [b"", b"nonsense", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", b"\xff\xfe" * 99])
def test_invalid_signing_request_is_refused(body: bytes) -> None:
    with pytest.raises(tls.TlsError, match="not a certificate signing request"):
        tls.requested_key(body)


async def shown(port: int, context: ssl.SSLContext) -> str:
    """The common name of a server's certificate."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="a.example")
    certificate = writer.get_extra_info("peercert")
    writer.close()
    (name,) = [value for part in certificate["subject"] for key, value in part if key == "commonName"]
    return str(name)


async def test_certificate_is_rotated_while_listening(ca: KeyPair) -> None:
    one = tls.server_context(leaf(ca, Names(dns=("one.example", "a.example"))))
    two = tls.server_context(leaf(ca, Names(dns=("two.example", "a.example"))))
    chosen: list[ssl.SSLContext] = []
    context = tls.switching_context(lambda: chosen[-1] if chosen else None)
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = tls.client_context(ca.certificate)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await shown(port, client)
        for context, name in ((one, "one.example"), (two, "two.example")):
            chosen.append(context)
            assert await shown(port, client) == name


async def test_tls_before_1_2_is_refused(ca: KeyPair) -> None:
    pair = leaf(ca, Names(dns=("a.example",)))
    context = tls.server_context(pair)
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    old = tls.client_context(ca.certificate)
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    async with server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await shown(server.sockets[0].getsockname()[1], old)
    for made in (context, tls.client_context(ca.certificate)):
        assert made.minimum_version == ssl.TLSVersion.TLSv1_2
