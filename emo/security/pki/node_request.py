"""Makes a node's key, which never leaves the node, and a request for a certificate with its id.

Whose id a request may have, the operator decides with `emo pki issue`.
"""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from emo.config import ID
from emo.errors import CertificateError
from emo.security.pki import pem_files


def request(folder: Path, name: str) -> bool:
    """Write node.key unless it exists, and node.csr unless it is this key's. Returns whether anything changed.

    A certificate is renewed with the same key; for another key, move the old one away first.
    Raises CertificateError: a bad id, a folder that cannot be written, a key that cannot be read.
    """
    if not ID.fullmatch(name):
        raise CertificateError(f"--id {name!r}: letters, digits, '.', '_', '-', at most 64")
    pem_files.folder(folder)
    path, wanted = folder / "node.key", folder / "node.csr"
    if path.exists():
        key = pem_files.keys(path)[0]
        if wanted.exists():
            present = pem_files.request(wanted)
            if pem_files.public(present) == pem_files.public(key) and common_name(present.subject) == name:
                return False
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        pem_files.write(path, pem_files.key_pem(key), public=False)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return pem_files.write(wanted, pem_files.encoded(made))


def common_name(subject: x509.Name) -> str:
    """Whose certificate or request it is; empty when the subject has no common name, or several."""
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""
