"""The project's CA: a folder from which certificates are issued, renewed, revoked and listed, and the CA itself changed.

    ca.crt    the CA's certificate; two while they change, the new one first: nodes and brokers trust what is in it
    ca.key    their keys, in any order, 0600
    crl.pem   of each CA in ca.crt, what it has revoked: Mosquitto refuses whoever's CA has none
    issued/ID/node-0001.crt, broker-0001.crt   every certificate there was

Knows this folder. Knows no fleet, and of X.509 only what form.py says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from emo.config import ID
from emo.errors import CertificateError
from emo.pki import form, pem
from emo.pki.form import Kind

State = Literal["valid", "expired", "revoked", "superseded", "dropped"]  # with its CA


@dataclass(frozen=True)
class Issued:
    """`hosts`: names and addresses that a broker may be reached by. `old`: of a CA that is being given up, or was."""

    id: str
    kind: Kind
    certificate: x509.Certificate
    hosts: tuple[str, ...]
    state: State
    old: bool


def init(folder: Path, name: str, days: int, passphrase: bytes | None) -> None:
    """Raises CertificateError when there is anything in `folder`: a CA is not overwritten."""
    pem.folder(folder)
    if any(path.name != ".lock" for path in folder.iterdir()):
        raise CertificateError(f"{folder}: not empty, and not overwritten; name another folder")
    with pem.lock(folder):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = form.root(name, key, days)
        pem.write(folder / "ca.key", pem.key_pem(key, passphrase), mode=0o600)
        pem.write(folder / "crl.pem", pem.encoded(form.crl(certificate, key, None, ())))
        pem.write(folder / "ca.crt", pem.encoded(certificate))


class Authority:
    def __init__(self, folder: Path, passphrase: bytes | None = None, keys: bool = True) -> None:
        """`keys`: False where nothing will be signed. Raises CertificateError: no CA there, or a wrong passphrase."""
        self._folder, self._passphrase = folder, passphrase
        if not (folder / "ca.crt").exists():
            raise CertificateError(f"{folder}: holds no CA; `emo pki init --ca {folder}` makes one")
        self.roots = pem.certificates(folder / "ca.crt")
        self._crls = {crl.issuer: crl for crl in pem.crls(folder / "crl.pem")}
        self._keys = {pem.public(key): key for key in pem.keys(folder / "ca.key", passphrase)} if keys else {}
        if keys and any(pem.public(root) not in self._keys for root in self.roots):
            raise CertificateError(f"{folder}: ca.key is not the key of ca.crt; restore both from one backup")

    def issue(
        self, request: x509.CertificateSigningRequest, name: str, kind: Kind, hosts: Sequence[str], days: int
    ) -> x509.Certificate:
        """The first certificate of `name`. Raises CertificateError: it has a valid one, or bad input."""
        for issued in self._of(name, kind):
            if issued.state == "valid":
                until = issued.certificate.not_valid_after_utc
                raise CertificateError(
                    f"{name}: has a {kind} certificate until {until:%Y-%m-%d}; renew it, or revoke it first"
                )
        return self._sign(request, name, kind, hosts, days)

    def renew(
        self,
        request: x509.CertificateSigningRequest,
        name: str,
        kind: Kind,
        hosts: Sequence[str],
        days: int,
        within: int | None = None,
    ) -> tuple[x509.Certificate, bool]:
        """(its certificate, whether it is new). `hosts`: empty for those that it has. `within`: not before so many
        days are left, unless its CA is being given up, or the key or the hosts are others.

        Raises CertificateError when it has none, or it was revoked: whose it is has then to be made sure again.
        """
        before = [issued for issued in self._of(name, kind) if issued.state != "superseded"]
        if not before or before[-1].state == "revoked":
            was = "was revoked" if before else "has no certificate"
            raise CertificateError(f"{name}: {was}; `emo pki issue`, when you know who asks")
        last = before[-1]
        hosts = hosts or last.hosts
        if within is not None and not (
            days_left(last.certificate) < within
            or last.old
            or pem.public(last.certificate) != pem.public(request)
            or set(hosts) != set(last.hosts)
        ):
            return last.certificate, False
        return self._sign(request, name, kind, hosts, days), True

    def revoke(self, name: str, kind: Kind) -> int:
        """All that `name` has; how many. Raises CertificateError when it never had one."""
        found = list(self._of(name, kind))
        if not found:
            raise CertificateError(f"{name}: never had a {kind} certificate; `emo pki list` says who has")
        open_ = [i.certificate for i in found if i.state in {"valid", "superseded"}]
        for root in self.roots:
            mine = [certificate for certificate in open_ if certificate.issuer == root.subject]
            if mine:
                key, crl = self._keys[pem.public(root)], self._crls.get(root.subject)
                self._crls[root.subject] = form.crl(root, key, crl, [each.serial_number for each in mine])
        self._write_crls()
        return len(open_)

    def certificates(self) -> Iterator[Issued]:
        """Every certificate there was, by id and age."""
        for folder in sorted((self._folder / "issued").glob("*")):
            yield from self._of(folder.name, "broker")
            yield from self._of(folder.name, "node")

    def rotate(self, name: str, days: int) -> None:
        """A new CA beside the present one. Raises CertificateError while another change is not finished."""
        if len(self.roots) > 1:
            raise CertificateError(
                f"{self._folder}: is in a change already; `emo pki rotate --finish` ends it"
            )
        key = ec.generate_private_key(ec.SECP256R1())
        root = form.root(name, key, days)
        self.roots.insert(0, root)
        self._keys[pem.public(key)] = key
        self._crls[root.subject] = form.crl(root, key, None, ())
        self._write_keys()  # first: whatever is in ca.crt has its key, also after a crash between
        self._write_crls()
        pem.write(self._folder / "ca.crt", pem.encoded(*self.roots))

    def finish(self) -> None:
        """Give the old CA up. Raises CertificateError while somebody's newest certificate is its."""
        if len(self.roots) == 1:
            raise CertificateError(f"{self._folder}: no change is under way; `emo pki rotate` begins one")
        late = sorted({i.id for i in self.certificates() if i.old and i.state == "valid"})
        if late:
            raise CertificateError(
                f"{self._folder}: the old CA cannot go: renew (or revoke) {', '.join(late)} first"
            )
        del self.roots[1:]
        pem.write(self._folder / "ca.crt", pem.encoded(*self.roots))
        self._write_crls()
        self._write_keys()

    def _of(self, name: str, kind: Kind) -> Iterator[Issued]:
        paths = sorted((self._folder / "issued" / name).glob(f"{kind}-*.crt"))
        for path in paths:
            certificate = pem.certificate(path)
            crl = self._crls.get(certificate.issuer)
            state: State = "valid"
            if crl is None:
                state = "dropped"
            elif crl.get_revoked_certificate_by_serial_number(certificate.serial_number):
                state = "revoked"
            elif days_left(certificate) < 0:
                state = "expired"
            elif path != paths[-1]:
                state = "superseded"
            old = certificate.issuer != self.roots[0].subject
            yield Issued(name, kind, certificate, form.hosts(certificate), state, old)

    def _sign(
        self, request: x509.CertificateSigningRequest, name: str, kind: Kind, hosts: Sequence[str], days: int
    ) -> x509.Certificate:
        if not ID.fullmatch(name):
            raise CertificateError(f"--id {name!r}: letters, digits, '.', '_', '-', at most 64")
        root = self.roots[0]
        end = datetime.now(UTC) + timedelta(days=days)
        if end > root.not_valid_after_utc:
            raise CertificateError(
                f"--days {days}: the CA itself ends on {root.not_valid_after_utc:%Y-%m-%d}; "
                "fewer days, or a new CA by `emo pki rotate`"
            )
        made = form.leaf(request, name, kind, hosts, root, self._keys[pem.public(root)], end)
        folder = self._folder / "issued" / name
        pem.folder(folder)
        number = len(list(folder.glob(f"{kind}-*.crt"))) + 1
        pem.write(folder / f"{kind}-{number:04d}.crt", pem.encoded(made))
        return made

    def _write_crls(self) -> None:
        pem.write(self._folder / "crl.pem", pem.encoded(*(self._crls[root.subject] for root in self.roots)))

    def _write_keys(self) -> None:
        keys = (self._keys[pem.public(root)] for root in self.roots)
        data = b"".join(pem.key_pem(key, self._passphrase) for key in keys)
        pem.write(self._folder / "ca.key", data, mode=0o600)


def days_left(certificate: x509.Certificate) -> int:
    """Whole ones; below 0 when it has expired."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)).days
