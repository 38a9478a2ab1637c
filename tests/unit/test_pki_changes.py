"""Certificates that are renewed and revoked, and a CA that gives way to another."""

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from authorities import issue, request

from emo.cli import _parser
from emo.errors import CertificateError
from emo.pki import authority, form, pem
from emo.pki.authority import Authority


def states(ca):
    return [(i.id, i.kind, i.state, i.old) for i in Authority(ca).certificates()]


# -- renewal


def test_renewal(ca, tmp_path):
    first = issue(ca, "edge-1", "broker", ("a.local",), days=40)
    csr = pem.request(tmp_path / "edge-1" / "node.csr")
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
    (tmp_path / "device-01" / "node.key").unlink()
    csr = pem.request(request(tmp_path, "device-01"))
    made, new = Authority(ca).renew(csr, "device-01", "node", (), 365, within=30)
    assert new
    assert pem.public(made) == pem.public(csr)


def test_who_has_none_or_lost_it_is_not_renewed(ca, tmp_path):
    csr = pem.request(request(tmp_path, "device-01"))
    with pytest.raises(CertificateError, match="has no certificate; `emo pki issue`"):
        Authority(ca).renew(csr, "device-01", "node", (), 365)
    issue(ca, "device-01")
    Authority(ca).revoke("device-01", "node")
    with pytest.raises(CertificateError, match="was revoked"):
        Authority(ca).renew(csr, "device-01", "node", (), 365)
    issue(ca, "device-01")
    assert [state for _, _, state, _ in states(ca)] == ["revoked", "valid"]
    assert Authority(ca).renew(csr, "device-01", "node", (), 365)[1]


def test_an_expired_one_may_be_renewed(ca, tmp_path):
    now, key = datetime.now(UTC), pem.keys(ca / "ca.key")[0]
    csr = pem.request(request(tmp_path, "device-01"))
    dates = now - timedelta(days=1), now - timedelta(days=9)
    old = form.leaf(csr, "device-01", "node", (), pem.certificate(ca / "ca.crt"), key, *dates)
    (ca / "issued" / "device-01").mkdir(parents=True)
    pem.write(ca / "issued" / "device-01" / "node-0001.crt", pem.encoded(old))
    assert states(ca)[0][2] == "expired"
    assert authority.days_left(old) == -2
    assert Authority(ca).renew(csr, "device-01", "node", (), 365, within=30)[1]


# -- revocation


def test_a_crl_grows_and_is_newer_each_time(ca):
    made = {name: issue(ca, name) for name in ("device-01", "device-02")}
    before = pem.crls(ca / "crl.pem")[0]
    for number, name in enumerate(made):
        assert Authority(ca).revoke(name, "node") == 1
        (crl,) = pem.crls(ca / "crl.pem")
        assert crl.is_signature_valid(pem.certificate(ca / "ca.crt").public_key())
        assert len(crl) == number + 1
        assert crl.last_update_utc > before.last_update_utc  # of two OpenSSL takes the later
        assert crl.next_update_utc == pem.certificate(ca / "ca.crt").not_valid_after_utc
        before = crl
    assert Authority(ca).revoke("device-01", "node") == 0
    assert all(before.get_revoked_certificate_by_serial_number(c.serial_number) for c in made.values())
    with pytest.raises(CertificateError, match="never had a node certificate"):
        Authority(ca).revoke("device-03", "node")


def test_all_that_a_node_has_is_revoked(ca, tmp_path):
    issue(ca, "device-01")
    Authority(ca).renew(pem.request(tmp_path / "device-01" / "node.csr"), "device-01", "node", (), 365)
    assert Authority(ca).revoke("device-01", "node") == 2
    assert [state for _, _, state, _ in states(ca)] == ["revoked", "revoked"]


# -- another CA


def test_rotation(ca, tmp_path):
    csr = {name: pem.request(request(tmp_path, name)) for name in ("device-01", "device-02", "device-03")}
    for name in csr:
        issue(ca, name)
    old = pem.certificate(ca / "ca.crt")
    Authority(ca).rotate("EMO", 3650)
    new, second = pem.certificates(ca / "ca.crt")
    assert second == old
    assert new.subject != old.subject
    assert {crl.issuer for crl in pem.crls(ca / "crl.pem")} == {new.subject, old.subject}
    with pytest.raises(CertificateError, match="is in a change already"):
        Authority(ca).rotate("EMO", 3650)
    made, renewed = Authority(ca).renew(csr["device-01"], "device-01", "node", (), 365, within=30)
    assert renewed
    made.verify_directly_issued_by(new)
    Authority(ca).revoke("device-02", "node")  # of the old one
    assert len({crl.issuer: crl for crl in pem.crls(ca / "crl.pem")}[old.subject]) == 1
    with pytest.raises(CertificateError, match=r"the old CA cannot go: renew \(or revoke\) device-03 first"):
        Authority(ca).finish()
    Authority(ca).renew(csr["device-03"], "device-03", "node", (), 365)
    Authority(ca).finish()
    assert pem.certificates(ca / "ca.crt") == [new]
    assert len(pem.keys(ca / "ca.key")) == len(pem.crls(ca / "crl.pem")) == 1
    assert stat.S_IMODE((ca / "ca.key").stat().st_mode) == 0o600
    assert [state for name, _, state, _ in states(ca) if name == "device-02"] == ["dropped"]
    with pytest.raises(CertificateError, match="no change is under way"):
        Authority(ca).finish()


@pytest.mark.parametrize("step", ["rotate", "finish"])
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_change_that_is_killed_leaves_a_ca_that_works(ca, monkeypatch, step, writes):
    def change():
        Authority(ca).rotate("EMO", 10) if step == "rotate" else Authority(ca).finish()

    if step == "finish":
        Authority(ca).rotate("EMO", 10)
    write, done = pem.write, []

    def killed(*args, **options):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(write(*args, **options))

    with monkeypatch.context() as patch:
        patch.setattr(pem, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            change()
    issued = Authority(ca)
    made = issue(ca, "device-01", days=1)
    made.verify_directly_issued_by(issued.roots[0])
    assert {root.subject for root in issued.roots} <= {crl.issuer for crl in pem.crls(ca / "crl.pem")}


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
