"""A CA's folder and what nodes bring it, damaged or crafted: a CertificateError, never a traceback, and nothing is lost."""

import base64
import contextlib
import os
import random
import re
import stat
from datetime import UTC, datetime, timedelta

import pytest
from authorities import issue, request
from cryptography.hazmat.primitives import serialization

from emo import files
from emo.cli import main
from emo.config import Tls
from emo.errors import CertificateError, EmoError
from emo.mqtt import tls
from emo.security.pki import authority, node_request, pem_files
from emo.security.pki import certificates as form
from emo.security.pki.authority import Authority


def run(*words):
    return main(["pki", *map(str, words)])


# -- damaged bytes


def damaged(data, rng):
    """Mostly its DER, where nothing but the parser stands in the way."""
    parts = re.fullmatch(rb"(-----BEGIN [^\n]*\n)(.*)(-----END [^\n]*\n)", data, re.DOTALL)
    head, body, tail = parts.groups() if parts else (b"", b"", b"")
    if parts is None or rng.random() < 0.2:
        return flipped(data, rng)
    return head + base64.encodebytes(flipped(base64.decodebytes(body), rng)) + tail


def flipped(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[place] = rng.randrange(256)
            case 1:
                data[place] ^= 1 << rng.randrange(8)
            case 2:
                del data[place : place + rng.randint(1, 8)]
            case 3:
                data[place:place] = rng.randbytes(rng.randint(1, 4))
    return bytes(data) or b"x"


def use(ca, place):
    """Whatever is done with these files."""
    Authority(ca).renew(pem_files.request(place / "node.csr"), "edge-1", "broker", (), 365, within=30)
    Authority(ca).issue(pem_files.request(place / "node.csr"), "edge-1", "node", (), 365)
    Authority(ca).revoke("edge-1", "broker")
    Authority(ca).rotate("EMO", 3650)


def connect(ca, place):
    del ca
    known = Tls(ca=place / "ca.crt", cert=place / "node.crt", key=place / "node.key")
    tls.context(known)
    tls.common_name(known.cert)
    tls.validity(known.cert)
    tls.days_left(known.cert)
    node_request.request(place, "edge-1")


FILES = {
    "edge-1/node.csr": use,
    "ca/ca.crt": use,
    "ca/ca.key": use,
    "ca/crl.pem": use,
    "ca/revoked.txt": use,
    "ca/issued/edge-1/broker-0001.crt": use,
    "edge-1/node.key": connect,
    "edge-1/node.crt": connect,
    "edge-1/ca.crt": connect,
    "edge-1/crl.pem": connect,
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("name", FILES)
def test_damaged_bytes(ca, tmp_path, monkeypatch, name):
    made = issue(ca, "edge-1", "broker", ("a.local", "10.0.0.1"))
    issue(ca, "device-01")
    Authority(ca).revoke("device-01", "node")
    place = tmp_path / "edge-1"
    pem_files.write(place / "node.crt", pem_files.encoded(made))
    for public in ("ca.crt", "crl.pem"):
        pem_files.write(place / public, (ca / public).read_bytes())
    monkeypatch.setattr(pem_files, "write", lambda *_, **__: False)  # so that each begins with what is there now
    FILES[name](ca, place)
    path, rng, said = tmp_path / name, random.Random(name), []
    data = path.read_bytes()
    for _ in range(100):
        path.write_bytes(damaged(data, rng))
        try:
            FILES[name](ca, place)
        except EmoError as error:
            said.append(str(error))
    assert len(said) > 30  # the rest does no harm
    assert all(str(tmp_path) in text or "edge-1" in text for text in said)


def test_what_is_missing_or_no_file(ca, tmp_path):
    place = request(tmp_path, "edge-1").parent
    for name in ("ca/ca.crt", "ca/ca.key", "ca/crl.pem"):
        path = tmp_path / name
        kept = path.read_bytes()
        for make in (lambda _: None, lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere")):
            path.unlink()
            make(path)
            with pytest.raises(CertificateError, match=str(ca)):
                use(ca, place)
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            path.write_bytes(kept)


def test_a_request_comes_by_a_pipe(ca, tmp_path):
    data = request(tmp_path, "device-01").read_bytes()
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    assert pem_files.encoded(pem_files.request(tmp_path.__class__(f"/dev/fd/{reader}"))) == data
    os.close(reader)


# -- records


def test_no_record_is_written_over(ca, tmp_path):
    """Numbers go on from the highest, whatever is missing below it."""
    issue(ca, "device-01")
    csr = pem_files.request(tmp_path / "device-01" / "node.csr")
    second, _ = Authority(ca).renew(csr, "device-01", "node", (), 365)
    (ca / "issued" / "device-01" / "node-0001.crt").unlink()
    third, _ = Authority(ca).renew(csr, "device-01", "node", (), 365)
    found = [issued.certificate for issued in Authority(ca).certificates()]
    assert found == [second, third]


def test_a_record_of_another_is_found_out(ca):
    for name in ("device-01", "device-02"):
        issue(ca, name)
    records = [ca / "issued" / name / "node-0001.crt" for name in ("device-01", "device-02")]
    records[0].write_bytes(records[1].read_bytes())
    with pytest.raises(CertificateError, match=r"node-0001\.crt: is no certificate of device-01's"):
        list(Authority(ca).certificates())
    with pytest.raises(CertificateError, match=r"node-0001\.crt"):
        Authority(ca).revoke("device-01", "node")


def test_a_list_of_the_revoked_that_is_cut(ca):
    (ca / "revoked.txt").write_text(f"{'0' * 64} node device-01\n{'0' * 30}", encoding="utf-8")
    with pytest.raises(CertificateError, match=r"revoked\.txt: line 2 is damaged"):
        Authority(ca)


@pytest.mark.parametrize("command", ["issue", "renew"])
def test_only_a_certificate_is_overwritten(ca, tmp_path, capsys, command):
    csr = request(tmp_path, "device-01")
    if command == "renew":
        issue(ca, "device-01")
    key = csr.with_name("node.key")
    before = key.read_bytes(), len(list(Authority(ca).certificates()))
    assert run(command, "--ca", ca, "--id", "device-01", "--csr", csr, "--out", key) == 2
    assert "holds no certificate, and is not overwritten" in capsys.readouterr().err
    assert (key.read_bytes(), len(list(Authority(ca).certificates()))) == before


# -- what an operator may mistype


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--name", "n" * 65], "--name"),
        (["--name", "\udcff"], "--name"),
        (["--passphrase-file", "long"], "longer than 1000 bytes"),
    ],
)
def test_a_ca_that_cannot_be_made(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long").write_bytes(b"x" * 1001)
    assert run("init", "--ca", tmp_path / "ca", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "ca" / "ca.crt").exists()


@pytest.mark.parametrize("days", ["36501", "9" * 20])
def test_more_days_than_a_calendar_has(tmp_path, capsys, days):
    with pytest.raises(SystemExit):
        run("init", "--ca", tmp_path / "ca", "--days", days)
    assert "1 to 36,500 days" in capsys.readouterr().err


def test_a_ca_that_has_ended_revokes(ca, tmp_path):
    """Its CRL can grow no more; what it knew is remembered."""
    issue(ca, "device-01", days=1)
    now = datetime.now(UTC)
    key = pem_files.keys(ca / "ca.key")[0]
    root = ended(key, pem_files.certificate(ca / "ca.crt"), now - timedelta(days=5))
    csr = pem_files.request(tmp_path / "device-01" / "node.csr")
    leaf = form.leaf(csr, "device-01", "node", (), (root, key), now - timedelta(days=6), now - timedelta(days=9))
    (ca / "ca.crt").write_bytes(pem_files.encoded(root))
    (ca / "issued" / "device-01" / "node-0001.crt").write_bytes(pem_files.encoded(leaf))
    assert Authority(ca).revoke("device-01", "node") == 1
    assert Authority(ca).revoke("device-01", "node") == 0


def ended(key, like, when):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    builder = x509.CertificateBuilder().subject_name(like.subject).issuer_name(like.subject)
    builder = builder.public_key(key.public_key()).serial_number(5)
    builder = builder.not_valid_before(when - timedelta(days=9)).not_valid_after(when)
    for extension in like.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, hashes.SHA256())


# -- files of ours


def test_a_file_is_made_new_and_never_through_a_link(tmp_path, monkeypatch):
    """In a folder that others write to, whatever name they guess."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / "victim").write_bytes(b"kept")
    (tmp_path / ".guessed.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        files.write(tmp_path / "state", b"secret")
    assert (tmp_path / "victim").read_bytes() == b"kept"
    assert (tmp_path / ".guessed.tmp").is_symlink() or not (tmp_path / ".guessed.tmp").exists()


@pytest.mark.parametrize(("public", "mode"), [(False, 0o600), (True, 0o644)])
def test_modes_from_the_first_byte_on(tmp_path, monkeypatch, public, mode):
    seen, write = [], os.write

    def watched(handle, data):
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return write(handle, data)

    monkeypatch.setattr(os, "write", watched)
    with umask(0):
        files.write(tmp_path / "x", b"x", public=public)
        (tmp_path / "y").write_bytes(b"")
        with files.create(tmp_path / "y") as file:
            seen_there = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        files.make_folder(tmp_path / "above" / "own")
    assert seen == [mode]
    assert seen_there == 0o600
    assert stat.S_IMODE((tmp_path / "above" / "own").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "above").stat().st_mode) == 0o777


@contextlib.contextmanager
def umask(value):
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def test_a_passphrase_of_another_alphabet(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes("geheim-\u00fc\n".encode())
    assert run("init", "--ca", tmp_path / "ca", "--passphrase-file", secret) == 0
    with pytest.raises(CertificateError, match="encrypted"):
        authority.Authority(tmp_path / "ca", b"\xff" * 1000)
    assert serialization.load_pem_private_key((tmp_path / "ca" / "ca.key").read_bytes(), "geheim-\u00fc".encode())
