"""The project's CA: a folder from which certificates are issued, renewed, revoked and listed, and the CA itself changed.

ca.crt    the CA's certificate; two while they change, the new one first: nodes and brokers trust what is in it
ca.key    their keys, in any order, 0600
crl.pem   for each CA in ca.crt, what it has revoked: Mosquitto refuses the nodes of a CA that has none
revoked.txt   every key revoked by any of them: no later CA accepts those keys, or those ids unless told to
issued/ID/node-0001.crt, broker-0001.crt   every certificate there was
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from emo.config import ID
from emo.errors import CertificateError
from emo.security.pki import certificates, pem_files
from emo.security.pki.certificates import Kind
from emo.security.pki.node_request import common_name
from emo.security.pki.revoked import Revoked

_READMIT = "was revoked; if it is in the right hands again, `emo pki issue --readmit`, for a new key"
_NUMBER = re.compile(r"-(\d{4,9})\.crt$")
State = Literal["valid", "expired", "revoked", "superseded", "dropped"]  # dropped: together with its CA


@dataclass(frozen=True)
class Issued:
    """`hosts`: a broker's names and addresses. `old`: of a CA that is being given up, or was."""

    id: str
    kind: Kind
    certificate: x509.Certificate
    hosts: tuple[str, ...]
    state: State
    old: bool


def init(folder: Path, name: str, days: int, passphrase: bytes | None) -> None:
    """Make a CA. Raises CertificateError when `folder` is not empty: a CA is not overwritten."""
    pem_files.folder(folder)
    if any(path.name != ".lock" for path in folder.iterdir()):
        raise CertificateError(f"{folder}: not empty, and not overwritten; name another folder")
    with pem_files.lock(folder):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = certificates.root(name, key, days)
        pem_files.write(folder / "ca.key", pem_files.key_pem(key, passphrase), public=False)
        pem_files.write(folder / "crl.pem", pem_files.encoded(certificates.crl(certificate, key, None, ())))
        Revoked(folder).write()
        pem_files.write(folder / "ca.crt", pem_files.encoded(certificate))


class Authority:
    def __init__(self, folder: Path, passphrase: bytes | None = None, keys: bool = True) -> None:
        """`keys`: False if nothing will be signed. Raises CertificateError: no CA there, or a wrong passphrase."""
        self._folder, self._passphrase = folder, passphrase
        if not (folder / "ca.crt").exists():
            raise CertificateError(f"{folder}: holds no CA; `emo pki init --ca {folder}` makes one")
        self.roots = pem_files.certificates(folder / "ca.crt")
        self._crls = {crl.issuer: crl for crl in pem_files.crls(folder / "crl.pem")}
        self._keys = (
            {pem_files.public(key): key for key in pem_files.keys(folder / "ca.key", passphrase)} if keys else {}
        )
        if keys and any(pem_files.public(root) not in self._keys for root in self.roots):
            raise CertificateError(f"{folder}: ca.key is not the key of ca.crt; restore both from one backup")
        self._check()
        self._revoked = Revoked(folder)
        if self._revoked.new:
            self._remember()

    def issue(
        self,
        request: x509.CertificateSigningRequest,
        name: str,
        kind: Kind,
        hosts: Sequence[str],
        days: int,
        readmit: bool = False,
    ) -> x509.Certificate:
        """The first certificate of `name`, or, with `readmit`, the first after a revocation, for a key that was never
        revoked. Raises CertificateError: it has a valid one, or bad input."""
        before = list(self._of(name, kind))
        was_revoked = before[-1].state == "revoked" if before else self._revoked.knows((kind, name))
        if was_revoked and not readmit:
            raise CertificateError(f"{name}: {_READMIT}")
        self._check_key(request, name)
        for issued in before:
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
        """(its certificate, whether it is new). `hosts`: empty to keep them. `within`: not while more days than these
        are left, unless its CA is being given up, or key or hosts have changed.

        Raises CertificateError when it has none, or was revoked: then the operator has to see again whose key it is.
        """
        before = list(self._of(name, kind))
        if not before:
            raise CertificateError(f"{name}: has no certificate; `emo pki issue`, when you know who asks")
        last = before[-1]
        if last.state == "revoked":
            raise CertificateError(f"{name}: {_READMIT}")
        self._check_key(request, name)
        hosts = hosts or last.hosts
        if within is not None and not (
            days_left(last.certificate) < within
            or last.old
            or pem_files.public(last.certificate) != pem_files.public(request)
            or set(hosts) != set(last.hosts)
        ):
            return last.certificate, False
        return self._sign(request, name, kind, hosts, days), True

    def revoke(self, name: str, kind: Kind) -> int:
        """Revoke all certificates that `name` ever had, and their keys. Returns how many were not revoked yet. Raises
        CertificateError when it never had one."""
        every = list(self._of(name, kind))
        if not every:
            raise CertificateError(f"{name}: never had a {kind} certificate; `emo pki list` says who has")
        # First: if this is killed before the CRL is written, it can be repeated, and nothing is renewed in between.
        self._revoked.add((pem_files.digest(issued.certificate) for issued in every), (kind, name))
        self._revoked.write()
        changed = {issued.certificate for issued in every if issued.state != "revoked"}
        for root in self.roots:
            key, crl = self._keys[pem_files.public(root)], self._crls[root.subject]
            mine = [issued.certificate for issued in every if issued.certificate.issuer == root.subject]
            mine = [certificate for certificate in mine if days_left(certificate) >= 0 and not _in(crl, certificate)]
            if mine:
                self._crls[root.subject] = certificates.crl(
                    root, key, crl, [certificate.serial_number for certificate in mine]
                )
                changed.update(mine)
        self._write_crls()
        return len(changed)

    def certificates(self) -> Iterator[Issued]:
        """Every certificate there was, by id and age."""
        for folder in sorted((self._folder / "issued").glob("*")):
            yield from self._of(folder.name, "broker")
            yield from self._of(folder.name, "node")

    def rotate(self, name: str, days: int) -> None:
        """Begin a change: a new CA beside the present one. Raises CertificateError while another change is under way."""
        if len(self.roots) > 1:
            raise CertificateError(f"{self._folder}: is in a change already; `emo pki rotate --finish` ends it")
        key = ec.generate_private_key(ec.SECP256R1())
        root = certificates.root(name, key, days)
        self.roots.insert(0, root)
        self._keys[pem_files.public(key)] = key
        self._crls[root.subject] = certificates.crl(root, key, None, ())
        self._write_keys()  # first: after a crash in between, every CA in ca.crt has its key
        self._write_crls()
        pem_files.write(self._folder / "ca.crt", pem_files.encoded(*self.roots))

    def finish(self) -> None:
        """End the change: drop the old CA. Raises CertificateError while somebody's newest certificate is of it."""
        if len(self.roots) == 1:
            raise CertificateError(f"{self._folder}: no change is under way; `emo pki rotate` begins one")
        late = sorted({i.id for i in self.certificates() if i.old and i.state == "valid"})
        if late:
            raise CertificateError(f"{self._folder}: the old CA cannot go: renew (or revoke) {', '.join(late)} first")
        self._revoked.write()  # the old CA's CRL goes with it
        del self.roots[1:]
        pem_files.write(self._folder / "ca.crt", pem_files.encoded(*self.roots))
        self._write_crls()
        self._write_keys()

    def _of(self, name: str, kind: Kind) -> Iterator[Issued]:
        paths = self._paths(name, kind)
        for number, path in paths.items():
            certificate = pem_files.certificate(path)
            if common_name(certificate.subject) != name or not self._signed(certificate):
                raise CertificateError(f"{path}: is no certificate of {name}'s, or damaged; restore it from a backup")
            crl = self._crls.get(certificate.issuer)
            state: State = "valid"
            if self._revoked.owner(pem_files.digest(certificate)) or (crl is not None and _in(crl, certificate)):
                state = "revoked"
            elif crl is None:
                state = "dropped"
            elif days_left(certificate) < 0:
                state = "expired"
            elif number != max(paths):
                state = "superseded"
            old = certificate.issuer != self.roots[0].subject
            yield Issued(name, kind, certificate, certificates.hosts(certificate), state, old)

    def _paths(self, name: str, kind: Kind) -> dict[int, Path]:
        """Number -> file, the oldest first."""
        paths = {}
        for path in (self._folder / "issued" / name).glob(f"{kind}-*.crt"):
            if number := _NUMBER.search(path.name):
                paths[int(number[1])] = path
        return dict(sorted(paths.items()))

    def _signed(self, certificate: x509.Certificate) -> bool:
        """Whether its CA signed it; True where that CA was given up."""
        try:
            for root in self.roots:
                if root.subject == certificate.issuer:
                    certificate.verify_directly_issued_by(root)
        except (InvalidSignature, ValueError, TypeError):
            return False
        return True

    def _check(self) -> None:
        """Raises CertificateError: ca.crt and crl.pem do not belong together."""
        for root in self.roots:
            crl, key = self._crls.get(root.subject), root.public_key()
            if (
                crl is None
                or not isinstance(key, ec.EllipticCurvePublicKey)
                or not crl.is_signature_valid(key)
                or not self._signed(root)
            ):
                raise CertificateError(f"{self._folder}: ca.crt or crl.pem is damaged; restore both from one backup")

    def _remember(self) -> None:
        """Fill revoked.txt, for a CA that was made before there was one, from its CRLs, without keys that the operator has
        issued again since."""
        known = [issued for issued in self.certificates() if issued.state in {"valid", "revoked"}]
        good = {pem_files.digest(issued.certificate) for issued in known if issued.state == "valid"}
        for issued in known:
            if (digest := pem_files.digest(issued.certificate)) not in good:
                self._revoked.add([digest], (issued.kind, issued.id))

    def _check_key(self, request: x509.CertificateSigningRequest, name: str) -> None:
        """Raises CertificateError if the request's key was revoked, whoever brings it now."""
        if owner := self._revoked.owner(pem_files.digest(request)):
            raise CertificateError(
                f"{name}: the key in this request was revoked as {owner[1]}'s; on the node, move node.key and node.csr away: "
                "`emo pki request` makes others"
            )

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
        ca = root, self._keys[pem_files.public(root)]
        made = certificates.leaf(request, name, kind, hosts, ca, end)
        folder = self._folder / "issued" / name
        pem_files.folder(folder)
        number = max(self._paths(name, kind), default=0) + 1
        pem_files.write(folder / f"{kind}-{number:04d}.crt", pem_files.encoded(made))
        return made

    def _write_crls(self) -> None:
        pem_files.write(self._folder / "crl.pem", pem_files.encoded(*(self._crls[root.subject] for root in self.roots)))

    def _write_keys(self) -> None:
        keys = (self._keys[pem_files.public(root)] for root in self.roots)
        data = b"".join(pem_files.key_pem(key, self._passphrase) for key in keys)
        pem_files.write(self._folder / "ca.key", data, public=False)


def _in(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
    return crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


def days_left(certificate: x509.Certificate) -> int:
    """Whole days; below 0 when it has expired."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)).days
