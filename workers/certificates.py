"""Certificates that a host makes itself: an authority of its own for Redis, and a key to sign messages."""

from __future__ import annotations

from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.x509.oid import NameOID

from registry.values import Record

KEY_BITS = 3072
LIFETIME = timedelta(days=3650)
BACKDATED = timedelta(days=1)  # the other host's clock may be behind


class KeyPair(Record):
    """A private key and its certificate, both PEM."""

    key: str
    certificate: str


class ServerFiles(Record):
    """What a server needs, and the authority that its clients trust."""

    server: KeyPair
    authority: str


def make_signing_pair(name: str, *, now: datetime) -> KeyPair:
    """A key that signs messages, with a certificate that says whose it is."""
    key = _new_key()
    return KeyPair(key=_pem(key), certificate=_text(_certificate(key, name=name, now=now)))


def make_server_files(addresses: tuple[str, ...], *, now: datetime) -> ServerFiles:
    """A certificate for these names and addresses, by an authority whose own key is thrown away."""
    authority_key, server_key = _new_key(), _new_key()
    authority = _certificate(authority_key, name="tandem redis authority", now=now, is_authority=True)
    server = _certificate(
        server_key,
        name=addresses[0],
        now=now,
        addresses=addresses,
        issuer=(authority, authority_key),
    )
    pair = KeyPair(key=_pem(server_key), certificate=_text(server))
    return ServerFiles(server=pair, authority=_text(authority))


def _certificate(
    key: RSAPrivateKey,
    *,
    name: str,
    now: datetime,
    is_authority: bool = False,
    addresses: tuple[str, ...] = (),
    issuer: tuple[x509.Certificate, RSAPrivateKey] | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    issuer_name, issuer_key = (subject, key) if issuer is None else (issuer[0].subject, issuer[1])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if addresses:
        names = x509.SubjectAlternativeName([_general_name(address) for address in addresses])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _new_key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65537, key_size=KEY_BITS)


def _pem(key: RSAPrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
