"""Certificates that are renewed and revoked, and a CA that gives way to another."""

import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from authorities import issue, request
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from emo.cli import _parser
from emo.errors import CertificateError
from emo.security.pki import authority, pem_files
from emo.security.pki import certificates as form
from emo.security.pki.authority import Authority


def rekeyed(folder, name):
    """A request of the same node for another key."""
    (folder / name / "node.key").unlink()
    return pem_files.request(request(folder, name))


def expired(ca, csr):
    now, key = datetime.now(UTC), pem_files.keys(ca / "ca.key")[0]
    dates = now - timedelta(days=1), now - timedelta(days=9)
    old = form.leaf(csr, "device-01", "node", (), (pem_files.certificate(ca / "ca.crt"), key), *dates)
    (ca / "issued" / "device-01").mkdir(parents=True)
    pem_files.write(ca / "issued" / "device-01" / "node-0001.crt", pem_files.encoded(old))
    return old


def states(ca):
    return [(i.id, i.kind, i.state, i.old) for i in Authority(ca).certificates()]


# -- renewal


def test_renewal(ca, tmp_path):
    first = issue(ca, "edge-1", "broker", ("a.local",), days=40)
    csr = pem_files.request(tmp_path / "edge-1" / "node.csr")
    same, new = Authority(ca).renew(csr, "edge-1", "broker", (), 365, within=30)
    assert (same, new) == (first, False)
    made, new = Authority(ca).renew(csr, "edge-1", "broker", (), 365, within=50)
    assert new
    assert form.hosts(made) == ("a.local",)
    assert authority.days_left(made) == 364
    assert states(ca) == [("edge-1", "broker", "superseded", False), ("edge-1", "broker", "valid", False)]
    assert Authority(ca).renew(csr, "edge-1", "broker", (), 365, within=30) == (made, False)
    assert Authority(ca).renew(csr, "edge-1", "broker", ("b.local",), 365, within=30)[1]
    assert Authority(ca).renew(csr, "edge-1", "broker", (), 365)[1]


def test_a_new_key_is_always_renewed(ca, tmp_path):
    issue(ca, "device-01")
    csr = rekeyed(tmp_path, "device-01")
    made, new = Authority(ca).renew(csr, "device-01", "node", (), 365, within=30)
    assert new
    assert pem_files.public(made) == pem_files.public(csr)


def test_who_has_none_or_lost_it_is_not_renewed(ca, tmp_path):
    csr = pem_files.request(request(tmp_path, "device-01"))
    with pytest.raises(CertificateError, match="has no certificate; `emo pki issue`"):
        Authority(ca).renew(csr, "device-01", "node", (), 365)
    issue(ca, "device-01")
    Authority(ca).revoke("device-01", "node")
    again = rekeyed(tmp_path, "device-01")
    for request_ in (csr, again):
        with pytest.raises(CertificateError, match="was revoked"):
            Authority(ca).renew(request_, "device-01", "node", (), 365)
    Authority(ca).issue(again, "device-01", "node", (), 365, readmit=True)
    assert [state for _, _, state, _ in states(ca)] == ["revoked", "valid"]
    assert Authority(ca).renew(again, "device-01", "node", (), 365)[1]


def test_an_expired_one_may_be_renewed(ca, tmp_path):
    csr = pem_files.request(request(tmp_path, "device-01"))
    old = expired(ca, csr)
    assert states(ca)[0][2] == "expired"
    assert authority.days_left(old) == -2
    assert Authority(ca).renew(csr, "device-01", "node", (), 365, within=30)[1]


# -- revocation


def test_a_crl_grows_and_is_newer_each_time(ca):
    made = {name: issue(ca, name) for name in ("device-01", "device-02")}
    before = pem_files.crls(ca / "crl.pem")[0]
    for number, name in enumerate(made):
        assert Authority(ca).revoke(name, "node") == 1
        (crl,) = pem_files.crls(ca / "crl.pem")
        assert crl.is_signature_valid(pem_files.certificate(ca / "ca.crt").public_key())
        assert len(crl) == number + 1
        assert crl.last_update_utc > before.last_update_utc  # of two OpenSSL takes the later
        assert crl.next_update_utc == pem_files.certificate(ca / "ca.crt").not_valid_after_utc
        before = crl
    assert Authority(ca).revoke("device-01", "node") == 0
    assert all(before.get_revoked_certificate_by_serial_number(c.serial_number) for c in made.values())
    with pytest.raises(CertificateError, match="never had a node certificate"):
        Authority(ca).revoke("device-03", "node")


def test_all_that_a_node_has_is_revoked(ca, tmp_path):
    issue(ca, "device-01")
    Authority(ca).renew(pem_files.request(tmp_path / "device-01" / "node.csr"), "device-01", "node", (), 365)
    assert Authority(ca).revoke("device-01", "node") == 2
    assert [state for _, _, state, _ in states(ca)] == ["revoked", "revoked"]


def test_what_has_expired_is_revoked_too(ca, tmp_path):
    csr = pem_files.request(request(tmp_path, "device-01"))
    expired(ca, csr)
    assert Authority(ca).revoke("device-01", "node") == 1
    assert [state for _, _, state, _ in states(ca)] == ["revoked"]
    with pytest.raises(CertificateError, match="was revoked"):
        Authority(ca).renew(csr, "device-01", "node", (), 365)


def test_who_was_revoked_stays_out_whatever_becomes_of_the_ca(ca, tmp_path):
    """The CRL ends with its CA; the files of certificates may get lost."""
    issue(ca, "device-01")
    stolen = pem_files.request(tmp_path / "device-01" / "node.csr")
    Authority(ca).revoke("device-01", "node")
    fresh = rekeyed(tmp_path, "device-01")
    for change in (
        lambda: None,
        lambda: Authority(ca).rotate("EMO", 3650),
        lambda: Authority(ca).finish(),
        lambda: shutil.rmtree(ca / "issued" / "device-01"),
    ):
        change()
        for csr in (stolen, fresh):
            with pytest.raises(CertificateError, match=r"revoked|has no certificate"):
                Authority(ca).renew(csr, "device-01", "node", (), 365)
            with pytest.raises(CertificateError, match="revoked"):
                Authority(ca).issue(csr, "device-01", "node", (), 365)
        with pytest.raises(CertificateError, match=r"was revoked as device-01's.*move node\.key"):
            Authority(ca).issue(stolen, "device-01", "node", (), 365, readmit=True)
    assert states(ca) == []
    Authority(ca).issue(fresh, "device-01", "node", (), 365, readmit=True)
    with pytest.raises(CertificateError, match="was revoked as device-01's"):
        Authority(ca).renew(stolen, "device-01", "node", (), 365)
    assert Authority(ca).renew(fresh, "device-01", "node", (), 365)[1]


@pytest.mark.parametrize("form", ["uncompressed", "compressed"])
def test_a_revoked_key_is_nobodys(ca, tmp_path, form):
    """Under another name, as a broker's, and in the other form in which a point is written."""
    issue(ca, "device-01")
    Authority(ca).revoke("device-01", "node")
    key = pem_files.keys(tmp_path / "device-01" / "node.key")[0]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge-1")])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    data = made.public_bytes(serialization.Encoding.DER)
    if form == "compressed":
        data = compressed(data, key)
    (tmp_path / "csr").write_bytes(x509.load_der_x509_csr(data).public_bytes(serialization.Encoding.PEM))
    for kind, hosts in (("node", ()), ("broker", ("a.local",))):
        with pytest.raises(CertificateError, match="was revoked as device-01's"):
            Authority(ca).issue(pem_files.request(tmp_path / "csr"), "edge-1", kind, hosts, 365, readmit=True)


def compressed(data, key):
    """That request, with its point in compressed form (SEC 1, 2.3.3), signed anew."""
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    short = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    info = bytearray(data[: data.index(point) + len(point)] + b"\xa0\x00")[3:]  # up to the empty attributes
    info[: len(info)] = bytes(info).replace(b"\x03\x42\x00" + point, b"\x03\x22\x00" + short)
    info[info.index(b"\x30\x59") + 1] = 0x39  # the key's own length
    info[1] = len(info) - 2
    signature = key.sign(bytes(info), ec.ECDSA(hashes.SHA256()))
    rest = bytes.fromhex("300a06082a8648ce3d040302") + b"\x03" + bytes([len(signature) + 1]) + b"\x00" + signature
    body = bytes(info) + rest
    return b"\x30\x81" + bytes([len(body)]) + body


def killed_after(writes, monkeypatch, act):
    """`act`, in a process that is killed when it has written so many files."""
    write, done = pem_files.write, []

    def killed(*args, **options):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(write(*args, **options))

    with monkeypatch.context() as patch:
        patch.setattr(pem_files, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            act()


@pytest.mark.parametrize("writes", [0, 1])
def test_a_revocation_that_is_killed_is_repeated(ca, tmp_path, monkeypatch, writes):
    issue(ca, "device-01")
    csr = pem_files.request(tmp_path / "device-01" / "node.csr")
    killed_after(writes, monkeypatch, lambda: Authority(ca).revoke("device-01", "node"))
    assert Authority(ca).revoke("device-01", "node") == 1
    assert len(pem_files.crls(ca / "crl.pem")[0]) == 1
    assert Authority(ca).revoke("device-01", "node") == 0
    with pytest.raises(CertificateError, match="was revoked"):
        Authority(ca).renew(csr, "device-01", "node", (), 365)


def test_a_ca_from_before_there_was_a_list_of_the_revoked(ca, tmp_path):
    """Its CRL says whom it had revoked; who got another certificate for the same key then keeps it."""
    for name in ("device-01", "device-02"):
        made = issue(ca, name)
        root, key = pem_files.certificates(ca / "ca.crt")[0], pem_files.keys(ca / "ca.key")[0]
        crl = form.crl(root, key, pem_files.crls(ca / "crl.pem")[0], [made.serial_number])
        pem_files.write(ca / "crl.pem", pem_files.encoded(crl))
    (ca / "revoked.txt").unlink()
    csr = pem_files.request(tmp_path / "device-02" / "node.csr")
    again = form.leaf(csr, "device-02", "node", (), (root, key), datetime.now(UTC) + timedelta(days=9))
    pem_files.write(ca / "issued" / "device-02" / "node-0002.crt", pem_files.encoded(again))
    Authority(ca).rotate("EMO", 3650)
    assert Authority(ca).renew(csr, "device-02", "node", (), 365)[1]
    Authority(ca).finish()
    assert [(name, state) for name, _, state, _ in states(ca)] == [
        ("device-01", "revoked"),
        ("device-02", "dropped"),
        ("device-02", "dropped"),
        ("device-02", "valid"),
    ]
    with pytest.raises(CertificateError, match="was revoked"):
        Authority(ca).renew(pem_files.request(tmp_path / "device-01" / "node.csr"), "device-01", "node", (), 365)


# -- another CA


def test_rotation(ca, tmp_path):
    csr = {name: pem_files.request(request(tmp_path, name)) for name in ("device-01", "device-02", "device-03")}
    for name in csr:
        issue(ca, name)
    old = pem_files.certificate(ca / "ca.crt")
    Authority(ca).rotate("EMO", 3650)
    new, second = pem_files.certificates(ca / "ca.crt")
    assert second == old
    assert new.subject != old.subject
    assert {crl.issuer for crl in pem_files.crls(ca / "crl.pem")} == {new.subject, old.subject}
    with pytest.raises(CertificateError, match="is in a change already"):
        Authority(ca).rotate("EMO", 3650)
    made, renewed = Authority(ca).renew(csr["device-01"], "device-01", "node", (), 365, within=30)
    assert renewed
    made.verify_directly_issued_by(new)
    Authority(ca).revoke("device-02", "node")  # of the old one
    assert len({crl.issuer: crl for crl in pem_files.crls(ca / "crl.pem")}[old.subject]) == 1
    with pytest.raises(CertificateError, match=r"the old CA cannot go: renew \(or revoke\) device-03 first"):
        Authority(ca).finish()
    Authority(ca).renew(csr["device-03"], "device-03", "node", (), 365)
    Authority(ca).finish()
    assert pem_files.certificates(ca / "ca.crt") == [new]
    assert len(pem_files.keys(ca / "ca.key")) == len(pem_files.crls(ca / "crl.pem")) == 1
    assert stat.S_IMODE((ca / "ca.key").stat().st_mode) == 0o600
    assert [state for name, _, state, _ in states(ca) if name == "device-02"] == ["revoked"]
    assert [state for name, _, state, _ in states(ca) if name == "device-01"] == ["dropped", "valid"]
    with pytest.raises(CertificateError, match="no change is under way"):
        Authority(ca).finish()


@pytest.mark.parametrize("step", ["rotate", "finish"])
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_change_that_is_killed_leaves_a_ca_that_works(ca, monkeypatch, step, writes):
    def change():
        Authority(ca).rotate("EMO", 10) if step == "rotate" else Authority(ca).finish()

    if step == "finish":
        Authority(ca).rotate("EMO", 10)
    killed_after(writes, monkeypatch, change)
    issued = Authority(ca)
    made = issue(ca, "device-01", days=1)
    made.verify_directly_issued_by(issued.roots[0])
    assert {root.subject for root in issued.roots} <= {crl.issuer for crl in pem_files.crls(ca / "crl.pem")}


# -- several operators


def _issue(ca, csr, name):
    words = ["pki", "issue", "--ca", ca, "--id", name, "--csr", csr, "--out", csr.with_name("node.crt")]
    args = _parser().parse_args(list(map(str, words)))
    try:
        return args.run(args, None)  # on a thread: main() would set signals
    except CertificateError:
        return 2


def test_many_at_once(ca, tmp_path):
    """As an orchestrator with many forks does it: each has his own, one that is asked for twice is given once."""
    names = [f"device-{n:02d}" for n in (1, 2, 3, 3)]
    csrs = [request(tmp_path, name) for name in names]
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda csr, name: _issue(ca, csr, name), csrs, names))
    assert sorted(codes) == [0, 0, 0, 2]
    assert [name for name, _, _, _ in states(ca)] == ["device-01", "device-02", "device-03"]
