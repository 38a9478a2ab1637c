"""PEM files of certificates, requests, keys and CRLs: read with a bound, written whole. What fails raises CertificateError."""

import contextlib
import fcntl
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from emo import files
from emo.errors import CertificateError

T = TypeVar("T")

_LIMIT = 1 << 20
_BLOCK = re.compile(rb"-----BEGIN [A-Z0-9 ]+-----(?:(?!-----).)*-----END [A-Z0-9 ]+-----\n?", re.DOTALL)


def write(path: Path, data: bytes, public: bool = True) -> bool:
    """Returns False when the file held just that already. `public`: others may read it."""
    with contextlib.suppress(OSError):
        if files.read(path, _LIMIT) == data:
            return False
    try:
        files.write(path, data, public=public)
    except OSError as error:
        raise CertificateError(f"{path}: cannot be written: {error.strerror}") from error
    return True


def folder(path: Path) -> None:
    """Make it, for its owner only."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CertificateError(f"{path}: cannot be made: {error.strerror}") from error


def read(path: Path) -> bytes:
    """All of a file that is no larger than any PEM file of ours."""
    return bytes(files.whole(path, _LIMIT, CertificateError))


def certificates(path: Path) -> list[x509.Certificate]:
    """One or more."""

    def load(data: bytes) -> list[x509.Certificate]:
        loaded = x509.load_pem_x509_certificates(data)
        for item in loaded:  # these are parsed when they are first asked for
            _ = (item.subject, item.issuer, item.extensions, public(item))
            _ = (item.not_valid_before_utc, item.not_valid_after_utc)
        return loaded

    return _parsed(path, "certificate", load)


def certificate(path: Path) -> x509.Certificate:
    """The first."""
    return certificates(path)[0]


def request(path: Path) -> x509.CertificateSigningRequest:
    """A request, which the owner of its key has signed."""

    def load(data: bytes) -> tuple[x509.CertificateSigningRequest, bool]:
        loaded = x509.load_pem_x509_csr(data)
        _ = (loaded.subject, public(loaded))
        return loaded, loaded.is_signature_valid

    csr, signed = _parsed(path, "certificate request", load)
    if not signed:
        raise CertificateError(f"{path}: the request's signature is wrong: damaged, or not its key's owner's")
    return csr


def crls(path: Path) -> list[x509.CertificateRevocationList]:
    """Each has a number."""

    def load(data: bytes) -> x509.CertificateRevocationList:
        crl = x509.load_pem_x509_crl(data)
        _ = (crl.issuer, crl.last_update_utc, crl.next_update_utc, list(crl))
        crl.extensions.get_extension_for_class(x509.CRLNumber)
        return crl

    return [_parsed(path, "CRL", load, block) for block in _BLOCK.findall(read(path))]


def keys(path: Path, passphrase: bytes | None = None) -> list[ec.EllipticCurvePrivateKey]:
    """One or more."""

    def load(data: bytes) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key(data, passphrase if b"ENCRYPTED" in data else None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("not on an elliptic curve")
        return key

    loaded = [_parsed(path, "private key", load, block) for block in _BLOCK.findall(read(path))]
    if not loaded:
        raise CertificateError(f"{path}: holds no private key in PEM form")
    return loaded


def encoded(
    *items: x509.Certificate | x509.CertificateRevocationList | x509.CertificateSigningRequest,
) -> bytes:
    return b"".join(item.public_bytes(serialization.Encoding.PEM) for item in items)


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        how = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def public(item: x509.Certificate | x509.CertificateSigningRequest | ec.EllipticCurvePrivateKey) -> bytes:
    """Its public key, by which it is seen whether two of them belong together."""
    return item.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def digest(item: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """SHA-256 of its public key, in hexadecimal."""
    return hashlib.sha256(public(item)).hexdigest()


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a CA's folder for one process at a time."""
    try:
        file = (path / ".lock").open("a")
    except OSError as error:
        raise CertificateError(
            f"{path}: is no CA's folder that can be written ({error.strerror}); `emo pki init` makes one"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _parsed(path: Path, what: str, load: Callable[[bytes], T], data: bytes | None = None) -> T:
    data = read(path) if data is None else data
    try:
        return load(data)
    except Exception as error:  # ValueError, UnsupportedAlgorithm, InvalidVersion, ExtensionNotFound, ...
        encrypted = b"ENCRYPTED" in data
        hint = "; it is encrypted: --passphrase-file, with the right one" if encrypted else ""
        raise CertificateError(f"{path}: holds no {what} that can be used ({error}){hint}") from error
