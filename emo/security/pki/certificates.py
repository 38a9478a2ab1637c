"""Makes the certificates and CRLs of a fleet (RFC 5280).

A node's certificate is for clients only and has no host name, a broker's is for servers only: neither can play the
other's part. Only the key is taken from a request; name, kind and hosts are what the operator says.
"""

import contextlib
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from emo import places
from emo.errors import CertificateError
from emo.security.pki.node_request import common_name

Kind = Literal["node", "broker"]
Key = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_EARLIER = timedelta(days=1)  # the clock of a node that has just been switched on may be behind
_RSA_BITS, _CURVE_BITS = 2048, 256


def root(name: str, key: Key, days: int) -> x509.Certificate:
    """A self-signed CA, which may sign certificates of nodes and brokers only."""
    # Two CAs that overlap need different names: a verifier looks up the issuer by its name.
    try:
        subject = _name(f"{name} CA {x509.random_serial_number() >> 136:06x}")
    except ValueError as error:
        raise CertificateError(f"--name {name[:80]!r}: {error}; a short name is enough") from error
    now = datetime.now(UTC)
    builder = _builder(subject, subject, key.public_key(), now - _EARLIER, now + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_usage(handshake=False), critical=True).sign(key, hashes.SHA256())


def leaf(
    request: x509.CertificateSigningRequest,
    name: str,
    kind: Kind,
    names: Sequence[str],
    ca: tuple[x509.Certificate, Key],
    end: datetime,
    start: datetime | None = None,
) -> x509.Certificate:
    """A certificate of `name` for the key in `request`. `names`: a broker's host names and addresses. `start`: by default
    a day ago. Raises CertificateError: another's request, a weak key, or names that do not fit the kind."""
    if (asked := common_name(request.subject)) != name:
        raise CertificateError(f"--id {name}: the request is of {asked!r}; is it the right file?")
    key = request.public_key()
    least = _RSA_BITS if isinstance(key, rsa.RSAPublicKey) else _CURVE_BITS
    if not isinstance(key, PublicKey) or key.key_size < least:
        raise CertificateError(
            f"{name}: the request's key is too weak: elliptic curves of 256 bits, or RSA of 2048, or more"
        )
    if kind == "broker" and not names:
        raise CertificateError(f"{name}: --broker needs --host: the names and addresses it is reached by")
    if kind == "node" and names:
        raise CertificateError(f"{name}: --host goes with --broker; a node's certificate has no host name")
    issuer, issuer_key = ca
    builder = _builder(_name(name), issuer.subject, key, start or datetime.now(UTC) - _EARLIER, end)
    usage = ExtendedKeyUsageOID.SERVER_AUTH if kind == "broker" else ExtendedKeyUsageOID.CLIENT_AUTH
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    known = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(handshake=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(known, critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(n) for n in names]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def crl(
    issuer: x509.Certificate, key: Key, before: x509.CertificateRevocationList | None, serials: Sequence[int]
) -> x509.CertificateRevocationList:
    """`before`, with `serials` added. Valid for as long as the CA: with an expired CRL Mosquitto lets nobody in."""
    now, number = datetime.now(UTC).replace(microsecond=0), 1
    begin = now - _EARLIER
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
    if before is not None:
        number = before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
        # Of two CRLs in its store OpenSSL takes the later one.
        begin = max(begin, before.last_update_utc + timedelta(seconds=1))
        for revoked in before:
            builder = builder.add_revoked_certificate(revoked)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(entry.build())
    builder = builder.last_update(begin).next_update(issuer.not_valid_after_utc)
    return builder.add_extension(x509.CRLNumber(number), critical=False).sign(key, hashes.SHA256())


def hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    """Its host names and addresses."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def _host(text: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(places.host(text)))
    labels = text.split(".")
    if not text.isascii() or len(text) > 253 or not all(label.replace("-", "").isalnum() for label in labels):
        raise CertificateError(f"--host {text!r}: is neither an IP address nor a host name")
    return x509.DNSName(text)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(handshake: bool) -> x509.KeyUsage:
    """For a TLS handshake, or else for a CA."""
    return x509.KeyUsage(
        digital_signature=handshake,
        key_cert_sign=not handshake,
        crl_sign=not handshake,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
