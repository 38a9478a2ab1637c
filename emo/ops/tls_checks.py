"""What `emo doctor` says of a node's certificate files: whether they fit each other and the node, and for how long."""

from collections.abc import Iterator
from typing import Literal

from emo.config import Tls
from emo.errors import CertificateError
from emo.extras import needs
from emo.mqtt import tls

Finding = tuple[Literal["ok", "warn", "FAIL"], str, str]  # level, detail, advice


def findings(files: Tls, name: str) -> Iterator[Finding]:
    """`name`: the node's id. Raises EmoError where cryptography is not installed."""
    if files.cert is None or files.key is None:
        try:
            tls.context(files)
        except CertificateError as error:
            yield "FAIL", str(error), "docs/security.md: brokers of others"
        else:
            yield "ok", f"encrypted; trusts {files.ca or 'what this system trusts'}, shows no certificate", ""
        return
    with needs("pki"):
        from emo.security.pki import pem_files  # noqa: PLC0415 - not every node has certificates
        from emo.security.pki.authority import days_left  # noqa: PLC0415
        from emo.security.pki.node_request import common_name  # noqa: PLC0415
    try:
        tls.context(files)
        certificate, roots = (
            pem_files.certificate(files.cert),
            pem_files.certificates(files.ca) if files.ca else [],
        )
    except CertificateError as error:
        yield "FAIL", str(error), "docs/security.md: certificates"
        return
    if (whose := common_name(certificate.subject)) != name:
        advice = "the broker knows a node by its certificate: correct id, or have one issued for it"
        yield "FAIL", f"{files.cert} is of {whose!r}, and this node is {name!r}", advice
    if files.key.stat().st_mode & 0o077:
        yield "warn", f"{files.key} can be read by others", f"chmod 600 {files.key}"
    if files.ca is not None and not files.ca.with_name("crl.pem").exists():
        detail = f"{files.ca}: no crl.pem beside it, so a broker that was revoked is still trusted"
        yield "warn", detail, "copy crl.pem from the CA's folder too"
    if (wrong := tls.validity(files.cert)) is not None:
        yield "FAIL", f"{files.cert} {wrong}", ""
    else:
        left = days_left(certificate)
        level: Literal["ok", "warn"] = "ok" if left >= tls.SOON_DAYS else "warn"
        advice = "" if level == "ok" else tls.RENEW
        yield level, f"{files.cert}: {whose}, {left} days left", advice
    for root in roots:
        if days_left(root) < tls.SOON_DAYS and (len(roots) == 1 or root.subject == certificate.issuer):
            detail = f"{files.ca}: the CA itself has {days_left(root)} days left"
            yield "warn", detail, "change it: `emo pki rotate`, docs/security.md"
