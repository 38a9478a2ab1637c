"""TLS to a broker: makes contexts from the files in a configuration, and finds out why there is no connection.

Imports cryptography only if a broker has `tls`.
"""

import logging
import socket
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from emo.config import Broker, Tls
from emo.errors import CertificateError
from emo.extras import needs
from emo.journal import Journal

log = logging.getLogger("emo")

SOON_DAYS = 30
RENEW = "renew it: `emo pki request` here, `emo pki renew` at the CA"


def context(tls: Tls) -> ssl.SSLContext:
    """A context that trusts `tls.ca` alone, or what this system trusts, checks the broker's name and shows `tls.cert`, if there
    is one. A crl.pem beside the CA is applied to brokers. Raises CertificateError: a file is missing, is no PEM, or does not
    fit the others."""
    for name, path in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)):
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            raise CertificateError(
                f"tls.{name} {path}: cannot be read: {error.strerror}; `emo pki request` makes a node's key and "
                "request, the CA's operator sends ca.crt and node.crt back"
            ) from error
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    what, path = "certificate", tls.ca
    try:
        if path is None:
            made.load_default_certs()
        else:
            made.load_verify_locations(path)
            if (crl := path.with_name("crl.pem")).exists():
                what, path = "CRL", crl
                made.load_verify_locations(crl)
                made.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ValueError) as error:
        raise CertificateError(f"tls.ca {path}: holds no {what} in PEM form ({error})") from error
    if tls.cert is None or tls.key is None:
        return made
    try:
        made.load_cert_chain(tls.cert, tls.key, password=lambda: b"")  # or it would ask at a terminal
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError(
                f"tls.key {tls.key}: is not the key of tls.cert {tls.cert}; have the present node.csr signed"
            ) from error
        raise CertificateError(
            f"tls.cert {tls.cert} or tls.key {tls.key}: not a certificate and an unencrypted key in PEM form"
        ) from error
    return made


class RenewingContext(ssl.SSLContext):
    """Reads its files again for every connection, so a renewed certificate is used without a restart."""

    def __new__(cls, _tls: Tls) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, tls: Tls) -> None:
        self.tls = tls

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """Raises SSLError, which is what a transport expects, also for the files."""
        try:
            made = context(self.tls)
        except CertificateError as error:
            raise ssl.SSLError(str(error)) from error
        left = days_left(self.tls.cert)
        if left is not None and 0 <= left < SOON_DAYS:
            log.warning("tls.cert %s: expires in %d days; %s", self.tls.cert, left, RENEW)
        return made.wrap_socket(*args, **options)


def days_left(path: Path | None) -> int | None:
    """Days until the first certificate in `path` expires, below 0 after that. None if there is none to read."""
    if path is None:
        return None
    from emo.security.pki import pem_files  # noqa: PLC0415 - without TLS no cryptography is needed
    from emo.security.pki.authority import days_left  # noqa: PLC0415

    try:
        return days_left(pem_files.certificate(path))
    except CertificateError:
        return None


def validity(path: Path) -> str | None:
    """Why the certificate in `path` is not valid now, with what to do. Raises CertificateError."""
    from emo.security.pki import pem_files  # noqa: PLC0415

    certificate, now = pem_files.certificate(path), datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        return f"has expired on {certificate.not_valid_after_utc:%Y-%m-%d}; {RENEW}"
    if now < certificate.not_valid_before_utc:
        start = certificate.not_valid_before_utc
        return f"is valid from {start:%Y-%m-%d %H:%M} UTC on; {_clock()}"
    return None


def watch(tls: Tls, link: str, journal: Journal) -> None:
    """Give `journal` a gauge, tls.days_left.LINK. Raises CertificateError if the files cannot be used."""
    context(tls)
    if tls.cert is None:
        return
    with needs("pki"):
        from emo.security.pki import pem_files  # noqa: F401, PLC0415 - here, and not when a gauge is read

    def gauges() -> Mapping[str, int]:
        left = days_left(tls.cert)
        return {} if left is None else {f"tls.days_left.{link}": left}

    journal.watch(gauges)


def common_name(path: Path) -> str:
    """The name that the certificate in `path` is for. Raises CertificateError."""
    from emo.security.pki import node_request, pem_files  # noqa: PLC0415

    return node_request.common_name(pem_files.certificate(path).subject)


def trouble(broker: Broker, timeout_s: float = 3.0) -> str | None:
    """Why TLS with `broker` fails and what to do, as a sentence that continues after its name. None if TLS works, or nothing
    listens there.

    Makes a connection of its own and waits for the broker's verdict: in TLS 1.3 that comes after our end has finished,
    and a transport that is writing by then may never read it.
    """
    if broker.tls is None:
        return None
    files = broker.tls
    try:
        made = context(files)
        if files.cert is not None and (mine := validity(files.cert)) is not None:
            return f"cannot be used: tls.cert {files.cert} {mine}"
        plain = socket.create_connection((broker.host, broker.port), timeout_s)
    except CertificateError as error:
        return f"cannot be used: {error}"
    except OSError:
        return None
    shaken = False
    try:
        with plain, made.wrap_socket(plain, server_hostname=broker.host) as secure:
            shaken = True
            secure.settimeout(timeout_s / 3)
            if not secure.recv(1):
                return f"hangs up after the TLS handshake; does it take {_shown(files)}?"
    except ssl.SSLCertVerificationError as error:
        return f"has a certificate that {_distrust(error, broker.host, files)} ({error.verify_message})"
    except ssl.SSLError as error:
        return _alert((error.reason or str(error)).upper(), files)
    except TimeoutError:  # no verdict: it accepts us, and waits for CONNECT
        return None if shaken else "says nothing when asked for TLS; correct port (8883, say)"
    except OSError as error:
        return f"hangs up ({error.strerror}); is it TLS that it speaks there, or is the port another (8883, say)?"
    return None


def _distrust(error: ssl.SSLCertVerificationError, host: str, files: Tls) -> str:
    """Why the broker's certificate is not trusted, by OpenSSL's X509_V_ERR_*."""
    match error.verify_code:
        case 9:
            return f"is not valid yet; {_clock()}"
        case 10:
            return f"has expired; {_clock()}, else renew it: `emo pki renew --broker`"
        case 23:
            return "was revoked; issue it anew: `emo pki issue --broker`"
        case 26:
            return "is not a broker's: somebody plays its part, or it was issued without --broker"
        case 62 | 64:
            return f"is not for {host!r}; correct host, or renew it: `emo pki renew --broker --host {host} ...`"
        case 3 | 11 | 12:
            crl = files.ca and files.ca.with_name("crl.pem")
            return f"{crl} says nothing of; copy ca.crt and crl.pem from the CA's folder, both"
    if files.ca is None:
        return "is of no CA that this system trusts; name the broker's CA as tls.ca"
    return f"is not of the CA in tls.ca {files.ca}; if it is the right broker, copy ca.crt from the CA's folder"


def _alert(reason: str, files: Tls) -> str:
    """Why the broker ended the handshake, by the alert that it sent (RFC 8446, 6.2)."""
    if "WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER" in reason:
        return "speaks no TLS there; correct port (8883, say), or leave tls out"
    sentences = {
        "CERTIFICATE_EXPIRED": f"takes tls.cert {files.cert}, or its own CRL, for expired; compare the clocks, or {RENEW}",
        "CERTIFICATE_REVOKED": f"says that tls.cert {files.cert} was revoked; `emo pki issue --readmit`, if this node is to come back",
        "UNKNOWN_CA": f"does not know the CA of tls.cert {files.cert}, or has no CRL of it; "
        "it needs that CA's ca.crt and crl.pem, or this node a certificate of its CA",
        "CERTIFICATE_REQUIRED": f"was shown no certificate; it wants {_shown(files)}",
        "UNSUPPORTED_CERTIFICATE": f"says that tls.cert {files.cert} is no node's; issue it without --broker",
        "BAD_CERTIFICATE": f"refuses tls.cert {files.cert}: damaged, or not valid yet by its clock",
    }
    matching = (text for name, text in sentences.items() if name in reason)
    return next(matching, f"ends the TLS handshake: {reason}")


def _shown(files: Tls) -> str:
    return "a node's certificate (tls.cert, tls.key)" if files.cert is None else f"tls.cert {files.cert}"


def _clock() -> str:
    return f"it is {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC here: set the clock, if that is wrong"
