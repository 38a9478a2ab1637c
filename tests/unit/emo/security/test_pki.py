"""`emo pki`: what it issues, what it refuses, and that nothing is overwritten or half written."""

import json
import stat

import pytest
from authorities import issue, request
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from emo import files
from emo.cli import main
from emo.errors import CertificateError
from emo.security.pki import authority, node_request, pem_files
from emo.security.pki import certificates as form
from emo.security.pki.authority import Authority


def run(*words):
    return main(["pki", *map(str, words)])


def listed(ca, capsys):
    capsys.readouterr()
    assert run("list", "--ca", ca, "--json") == 0
    return json.loads(capsys.readouterr().out)


def states(ca):
    return [(i.id, i.kind, i.state, i.old) for i in Authority(ca).certificates()]


# -- what is issued


def test_a_node_is_a_client_and_a_broker_a_server(ca):
    roots = Store(pem_files.certificates(ca / "ca.crt"))
    client = issue(ca, "device-01")
    broker = issue(ca, "edge-1", "broker", ("edge-1.local", "192.168.1.5", "fe80::1"))
    verifier = PolicyBuilder().store(roots)
    assert verifier.build_server_verifier(x509.DNSName("edge-1.local")).verify(broker, [])
    with pytest.raises(x509.verification.VerificationError):
        verifier.build_server_verifier(x509.DNSName("edge-2.local")).verify(broker, [])
    usage = {c: list(c.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) for c in (client, broker)}
    assert usage == {client: [ExtendedKeyUsageOID.CLIENT_AUTH], broker: [ExtendedKeyUsageOID.SERVER_AUTH]}
    assert form.hosts(broker) == ("edge-1.local", "192.168.1.5", "fe80::1")
    assert form.hosts(client) == ()
    assert node_request.common_name(client.subject) == "device-01"
    (root,) = pem_files.certificates(ca / "ca.crt")
    client.verify_directly_issued_by(root)
    assert not client.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_nothing_but_the_key_is_taken_from_a_request(ca):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "device-01"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "x"),
        ]
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("cloud")]), critical=False)
    made = Authority(ca).issue(builder.sign(key, hashes.SHA256()), "device-01", "node", (), 1)
    assert made.subject.rfc4514_string() == "CN=device-01"
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert form.hosts(made) == ()


def test_private_keys_are_their_owners_alone(ca, tmp_path):
    request(tmp_path, "device-01")
    for path in (ca / "ca.key", tmp_path / "device-01" / "node.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(ca.stat().st_mode) == stat.S_IMODE((tmp_path / "device-01").stat().st_mode) == 0o700


def test_a_key_stays_and_a_request_is_its(tmp_path):
    csr = request(tmp_path, "device-01")
    before = {path: path.read_bytes() for path in csr.parent.iterdir()}
    assert not node_request.request(csr.parent, "device-01")
    assert {path: path.read_bytes() for path in csr.parent.iterdir()} == before
    csr.unlink()
    assert node_request.request(csr.parent, "device-01")
    assert (csr.parent / "node.key").read_bytes() == before[csr.parent / "node.key"]
    assert pem_files.public(pem_files.request(csr)) == pem_files.public(pem_files.keys(csr.parent / "node.key")[0])


# -- what is refused


@pytest.mark.filterwarnings("ignore:Attribute")
@pytest.mark.parametrize("name", ["a+b", "a/b", "#", "", "-a", "a" * 65, "a b"])
def test_an_id_that_may_not_stand_in_a_topic(ca, tmp_path, name):
    with pytest.raises(CertificateError, match="--id"):
        node_request.request(tmp_path / "n", name)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    with pytest.raises(CertificateError, match="--id"):
        Authority(ca).issue(csr, name, "node", (), 1)


def weak(key, name="device-01"):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "device-02"}, "request is of 'device-01'"),
        ({"kind": "broker"}, "needs --host"),
        ({"hosts": ("x",)}, "--host goes with --broker"),
        ({"kind": "broker", "hosts": ("a b",)}, "neither an IP address nor a host name"),
        ({"kind": "broker", "hosts": ("a..b",)}, "neither an IP address nor a host name"),
        ({"kind": "broker", "hosts": ("*",)}, "neither an IP address nor a host name"),
        ({"days": 3651}, "the CA itself ends"),
        ({"csr": weak(rsa.generate_private_key(65537, 1024))}, "too weak"),
        ({"csr": weak(ec.generate_private_key(ec.SECP192R1()))}, "too weak"),
    ],
)
def test_what_is_not_signed(ca, tmp_path, change, said):
    asked = {"csr": None, "name": "device-01", "kind": "node", "hosts": (), "days": 365} | change
    csr = asked["csr"] or pem_files.request(request(tmp_path, "device-01"))
    with pytest.raises(CertificateError, match=said):
        Authority(ca).issue(csr, asked["name"], asked["kind"], asked["hosts"], asked["days"])
    assert states(ca) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no certificate request"),
        (b"x" * ((1 << 20) + 1), "more than the 1,048,576 bytes"),
        (
            b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            "holds no certificate req",
        ),
    ],
)
def test_a_request_that_is_none(tmp_path, content, said):
    (tmp_path / "csr").write_bytes(content)
    with pytest.raises(CertificateError, match=said):
        pem_files.request(tmp_path / "csr")


def test_a_request_that_was_changed_on_its_way(tmp_path):
    path = request(tmp_path, "device-01")
    data = bytearray(pem_files.request(path).public_bytes(serialization.Encoding.DER))
    place = data.index(b"device-01")
    data[place : place + 9] = b"device-02"
    path.write_bytes(x509.load_der_x509_csr(bytes(data)).public_bytes(serialization.Encoding.PEM))
    with pytest.raises(CertificateError, match="signature is wrong"):
        pem_files.request(path)


def test_a_ca_is_not_overwritten(ca):
    before = {path.name: path.read_bytes() for path in ca.iterdir()}
    with pytest.raises(CertificateError, match="not empty, and not overwritten"):
        authority.init(ca, "EMO", 10, None)
    assert {path.name: path.read_bytes() for path in ca.iterdir()} == before


def test_a_folder_that_is_no_ca(tmp_path):
    with pytest.raises(CertificateError, match="holds no CA; `emo pki init"):
        Authority(tmp_path)


def test_a_key_from_another_backup(ca, tmp_path):
    authority.init(tmp_path / "other", "EMO", 10, None)
    (ca / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(CertificateError, match=r"ca\.key is not the key of ca\.crt"):
        Authority(ca)


def test_who_has_a_certificate_gets_no_second_first_one(ca):
    issue(ca, "device-01")
    with pytest.raises(CertificateError, match=r"has a node certificate until .*renew it, or revoke it first"):
        issue(ca, "device-01")
    issue(ca, "device-01", "broker", ("10.0.0.1",))  # of the broker beside it


def test_a_full_disk_leaves_what_was_there(ca, monkeypatch):
    before = {path: path.read_bytes() for path in ca.rglob("*") if path.is_file()}

    def full(path, *pieces, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(CertificateError, match="cannot be written: No space left"):
        Authority(ca).rotate("EMO", 10)
    assert {path: path.read_bytes() for path in ca.rglob("*") if path.is_file()} == before


# -- the commands


def test_commands(ca, tmp_path, capsys):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("edges: {edge-1: [device-01]}", encoding="utf-8")
    place = tmp_path / "tls"
    assert run("request", "--dir", place, "--id", "device-01", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"changed": True, "csr": str(place / "node.csr")}
    ask = ["--ca", ca, "--id", "device-01", "--csr", place / "node.csr", "--out", place / "node.crt"]
    assert run("issue", *ask, "--fleet", fleet) == 0
    assert run("issue", *ask) == 2
    assert "renew it, or revoke it first" in capsys.readouterr().err
    assert run("renew", *ask, "--within", "30", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["changed"], told["new"]) == (False, False)
    (place / "node.crt").unlink()
    assert run("renew", *ask, "--within", "30", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["changed"], told["new"]) == (True, False)
    assert (place / "node.crt").exists()
    assert run("rotate", "--ca", ca) == 0
    assert run("rotate", "--ca", ca, "--finish") == 2
    assert run("renew", *ask) == 0
    assert run("rotate", "--ca", ca, "--finish") == 0
    assert run("revoke", "--ca", ca, "--id", "device-01") == 0
    assert f"copy {ca / 'crl.pem'}" in capsys.readouterr().out
    assert run("issue", *ask) == 2
    assert "device-01: was revoked; " in capsys.readouterr().err
    assert run("issue", *ask, "--readmit") == 2
    assert "the key in this request was revoked" in capsys.readouterr().err
    (place / "node.key").unlink()
    assert run("request", "--dir", place, "--id", "device-01") == 0
    assert run("issue", *ask, "--fleet", fleet, "--readmit") == 0
    root, *rows = listed(ca, capsys)
    assert (root["kind"], root["state"], root["days_left"]) == ("ca", "valid", 3649)
    assert [(row["id"], row["state"]) for row in rows] == [("device-01", "revoked")] * 2 + [("device-01", "valid")]
    assert run("list", "--ca", ca) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--id", "device-07"], "no node 'device-07' in this fleet"),
        (["--id", "device-01", "--broker", "--host", "a"], "device-01 is of tier device"),
        (["--id", "watch", "--broker", "--host", "a"], "watch is of tier observer"),
    ],
)
def test_whom_the_fleet_does_not_know(ca, tmp_path, capsys, words, said):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("edges: {edge-1: [device-01]}\nobservers: [watch]", encoding="utf-8")
    csr = request(tmp_path, words[1])
    assert run("issue", "--ca", ca, "--csr", csr, "--out", tmp_path / "out", "--fleet", fleet, *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_observer_of_the_fleet_gets_its_certificate(ca, tmp_path):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("edges: {edge-1: [device-01]}\nobservers: [watch]", encoding="utf-8")
    words = ("--csr", request(tmp_path, "watch"), "--out", tmp_path / "out", "--fleet", fleet, "--id", "watch")
    assert run("issue", "--ca", ca, *words) == 0
    assert node_request.common_name(pem_files.certificate(tmp_path / "out").subject) == "watch"


def test_an_encrypted_key(tmp_path, capsys):
    secret, wrong, empty = (tmp_path / name for name in ("secret", "wrong", "empty"))
    secret.write_text("swordfish\n", encoding="utf-8")
    wrong.write_text("tuna\n", encoding="utf-8")
    empty.write_text("\n", encoding="utf-8")
    ca, csr = tmp_path / "ca", request(tmp_path, "device-01")
    ask = ["--ca", ca, "--id", "device-01", "--csr", csr, "--out", tmp_path / "out"]
    assert run("init", "--ca", ca, "--passphrase-file", secret) == 0
    assert b"ENCRYPTED" in (ca / "ca.key").read_bytes()
    for option in ([], ["--passphrase-file", wrong]):
        assert run("issue", *ask, *option) == 2
        assert "it is encrypted: --passphrase-file" in capsys.readouterr().err
    assert run("issue", *ask, "--passphrase-file", empty) == 2
    assert "first line is empty" in capsys.readouterr().err
    assert run("issue", *ask, "--passphrase-file", secret) == 0
    assert run("rotate", "--ca", ca, "--passphrase-file", secret) == 0
    assert (ca / "ca.key").read_bytes().count(b"BEGIN ENCRYPTED") == 2
    assert run("list", "--ca", ca) == 0  # which signs nothing


@pytest.mark.parametrize("days", ["0", "-1", "soon"])
def test_days_are_at_least_one(tmp_path, days, capsys):
    with pytest.raises(SystemExit):
        run("init", "--ca", tmp_path / "ca", "--days", days)
    assert "--days" in capsys.readouterr().err
