"""TLS files: what is missing, what does not fit, how long they last; no connection is made here."""

import os
import re
import stat
from datetime import UTC, datetime, timedelta

import pytest

from emo.config import Broker, DeviceConfig, Tls
from emo.config_file import load
from emo.errors import CertificateError
from emo.journal import Journal
from emo.mqtt import tls
from emo.mqtt.channel import MqttChannel
from emo.mqtt.probe import Probe
from emo.ops.example_configs import init
from emo.security.pki import authority, certificates, node_request, pem_files


@pytest.fixture
def make(tmp_path):
    """A node's files; `days` as the certificate has left."""
    authority.init(tmp_path / "ca", "EMO", 3650, None)

    def files(name="device-01", days=365.5, start=-1.0, ca=tmp_path / "ca"):
        place = tmp_path / f"{name}{days}{start}"
        node_request.request(place, name)
        root, key = pem_files.certificate(ca / "ca.crt"), pem_files.keys(ca / "ca.key")[0]
        now = datetime.now(UTC)
        dates = now + timedelta(days=days), now + timedelta(days=start)
        made = certificates.leaf(pem_files.request(place / "node.csr"), name, "node", (), (root, key), *dates)
        pem_files.write(place / "node.crt", pem_files.encoded(made))
        for public in ("ca.crt", "crl.pem"):
            pem_files.write(place / public, (ca / public).read_bytes())
        return Tls(ca=place / "ca.crt", cert=place / "node.crt", key=place / "node.key")

    return files


def test_the_environment_sets_it(tmp_path, monkeypatch):
    (path, *_) = [path for path in init(tmp_path) if path.stem == "device-01"]
    monkeypatch.setenv("EMO_WAN__TLS__CA", "/etc/emo/tls/ca.crt")
    monkeypatch.setenv("EMO_WAN__TLS__CERT", "c")
    monkeypatch.setenv("EMO_WAN__TLS__KEY", "k")
    config = load(DeviceConfig, path)
    assert str(config.wan.tls.ca) == "/etc/emo/tls/ca.crt"
    assert config.lan.tls is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("ca", None, r"tls\.ca .*ca\.crt: cannot be read: No such file.*emo pki request"),
        ("cert", None, r"tls\.cert .*node\.crt: cannot be read"),
        ("key", None, r"tls\.key .*node\.key: cannot be read"),
        ("ca", "", r"tls\.ca .*holds no certificate"),
        ("ca", "text", r"tls\.ca .*holds no certificate"),
        ("cert", "text", r"tls\.cert .*not a certificate and an unencrypted key"),
        ("key", "text", r"tls\.cert .*not a certificate and an unencrypted key"),
    ],
)
def test_a_file_that_cannot_be_used_stops_the_start(make, name, content, said):
    files = make()
    path = getattr(files, name)
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(CertificateError, match=said):
        MqttChannel(Broker(tls=files), "emo-device-01-wan", [], Journal())


def test_a_key_of_another_certificate(make):
    files = make().model_copy(update={"key": make("device-02").key})
    with pytest.raises(CertificateError, match=r"tls\.key .* is not the key of tls\.cert"):
        tls.context(files)


def test_an_encrypted_key_asks_nobody(make):
    files = make()
    pem_files.write(files.key, pem_files.key_pem(pem_files.keys(files.key)[0], b"secret"))
    with pytest.raises(CertificateError, match="unencrypted key"):
        tls.context(files)


def test_names_are_checked_and_only_our_ca_is_trusted(make):
    context = tls.context(make())
    assert context.check_hostname
    assert context.verify_mode == tls.ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("days", "start", "said"),
    [(-1, -3, "has expired on .*renew it"), (2, 1, "is valid from .*set the clock"), (1, -1, None)],
)
def test_validity(make, days, start, said):
    files = make(days=days, start=start)
    found = tls.validity(files.cert)
    assert found is None if said is None else re.search(said, found)
    if said:  # then nobody is asked
        trouble = tls.trouble(Broker(tls=files))
        assert trouble.startswith(f"cannot be used: tls.cert {files.cert} {found[:10]}")


def test_the_days_are_a_gauge_and_follow_the_file(make):
    files, journal = make(days=12.5), Journal()
    MqttChannel(Broker(tls=files), "emo-device-01-wan", [], journal)
    MqttChannel(Broker(tls=make(days=-1.5, start=-9)), "emo-device-01-lan", [], journal)
    journal.count("bytes")
    assert journal.snapshot() == {"bytes": 1, "tls.days_left.lan": -2, "tls.days_left.wan": 12}
    pem_files.write(files.cert, make(days=100.5).cert.read_bytes())
    assert journal.snapshot()["tls.days_left.wan"] == 100
    files.cert.unlink()
    assert "tls.days_left.wan" not in journal.snapshot()


def test_a_journal_keeps_the_gauges_of_all(make):
    journal = Journal()
    journal.watch(lambda: {"a": 1})
    journal.watch(lambda: {"b": 2})
    assert journal.snapshot() == {"a": 1, "b": 2}


# -- emo doctor


@pytest.fixture
def checks(tmp_path, monkeypatch, make):
    from emo.ops import doctor

    monkeypatch.setattr(doctor, "_STEP", "print('2.13.0 on the CPU')")
    monkeypatch.setattr(doctor, "_READY", 'print(\'{"ok": true, "detail": "it would start"}\')')
    asked = []
    monkeypatch.setattr(doctor, "probe", lambda broker: (asked.append(broker), Probe("5", 0.001))[1])
    (path, *_) = [path for path in init(tmp_path / "fleet") if path.stem == "device-01"]

    def run(files, host="127.0.0.1"):
        for key in ("ca", "cert", "key") if files else ():
            for link in ("WAN", "LAN"):
                monkeypatch.setenv(f"EMO_{link}__TLS__{key.upper()}", str(getattr(files, key)))
        monkeypatch.setenv("EMO_WAN__HOST", host)
        monkeypatch.setenv("EMO_LAN__HOST", host)
        return [
            (check.level, check.detail, check.advice) for check in doctor.checks(path) if check.what.startswith("tls")
        ]

    run.asked = asked
    return run


@pytest.mark.parametrize(
    ("days", "level", "advice"), [(365.5, "ok", ""), (30.5, "ok", ""), (29.5, "warn", "emo pki renew")]
)
def test_doctor_warns_30_days_ahead(make, checks, days, level, advice):
    files = make(days=days)
    ((found, detail, told),) = checks(files)
    assert found == level
    assert detail == f"{files.cert}: device-01, {int(days)} days left"
    assert advice in told


def test_doctor_finds_what_is_wrong(make, checks, tmp_path):
    ((level, detail, _),) = checks(make(days=-1, start=-2))
    assert level == "FAIL"
    assert "has expired" in detail
    (wrong, fine) = checks(make("device-02"))
    assert wrong[0] == "FAIL"
    assert "is of 'device-02', and this node is 'device-01'" in wrong[1]
    assert fine[0] == "ok"
    files = make()
    files.key.chmod(0o644)
    (readable, _) = checks(files)
    assert readable[0] == "warn"
    assert readable[2] == f"chmod 600 {files.key}"
    files.ca.with_name("crl.pem").unlink()
    (_, without, _) = checks(files)
    assert without[0] == "warn"
    assert "no crl.pem beside it, so a broker that was revoked is still trusted" in without[1]
    files.key.unlink()
    assert checks(files)[0][0] == "FAIL"


def test_doctor_warns_of_a_ca_that_ends(make, checks, tmp_path):
    authority.init(tmp_path / "short", "EMO", 20, None)
    (mine, root) = checks(make(days=15.5, ca=tmp_path / "short"))
    assert mine[0] == root[0] == "warn"
    assert "the CA itself has 19 days left" in root[1]


def test_doctor_warns_of_what_is_not_encrypted_unless_it_stays_here(checks):
    assert checks(None) == []
    ((level, detail, _),) = checks(None, host="10.0.0.2")
    assert level == "warn"
    assert "not encrypted" in detail


def test_doctor_does_not_end_the_connection_of_a_node_that_runs(make, checks, tmp_path):
    from emo.runtime.heartbeat import HeartbeatWriter

    connected = [True]
    state = tmp_path / "fleet" / "state" / "device-01"
    state.mkdir(parents=True)
    heart = HeartbeatWriter(state, "device", "device-01", lambda: {"wan": connected[0]})
    heart.beat()
    checks(make())
    assert not checks.asked
    connected[0] = False
    heart.beat()
    checks(make())
    assert checks.asked


def test_the_key_of_a_written_file_has_the_mode_that_was_asked_for(tmp_path):
    old = os.umask(0)
    try:
        pem_files.write(tmp_path / "key", b"x", public=False)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
