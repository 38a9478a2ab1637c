"""Brokers of others: who wants a user name and a password, speaks WebSocket, has a certificate and wants none."""

import base64
import hashlib
import logging

import paho.mqtt.client as paho
import pytest
from brokers import Mosquitto, free_port
from links import mqtt, update
from secured import Site

from emo.cli import main
from emo.config import Broker, Tls
from emo.errors import BrokerError, ConfigError, LoginError
from emo.mqtt import client as mqtt_client
from emo.mqtt import connection
from emo.mqtt.probe import probe
from emo.ops import broker_checks, doctor
from emo.wire.messages import Update
from emo.wire.topics import subscription

pytestmark = pytest.mark.usefixtures("quick")
SECRET = "0123: pä#ss"


def line(user, secret):
    """As mosquitto_passwd writes it."""
    key = hashlib.pbkdf2_hmac("sha512", secret.encode(), b"salt12345678", 101)
    return f"{user}:$7$101${base64.b64encode(b'salt12345678').decode()}${base64.b64encode(key).decode()}\n"


@pytest.fixture(scope="module")
def strict(mosquitto_program, tmp_path_factory):
    """Its brokers by name: tcp, websockets, tls. All want a password."""
    folder = tmp_path_factory.mktemp("strict")
    site = Site(tmp_path_factory.mktemp("site"), mosquitto_program)
    files = site.broker().folder / "tls"
    (folder / "passwords").write_text(line("emo", SECRET), encoding="utf-8")
    ports = {name: free_port() for name in ("websockets", "tls")}
    options = [
        f"password_file {folder / 'passwords'}",
        f"listener {ports['websockets']} 127.0.0.1\nprotocol websockets",
        f"listener {ports['tls']} 127.0.0.1\ncertfile {files / 'node.crt'}\nkeyfile {files / 'node.key'}",
    ]
    server = Mosquitto(mosquitto_program, folder, "\n".join(options))
    server._config.write_text(
        server._config.read_text(encoding="utf-8").replace("anonymous true", "anonymous false"),
        encoding="utf-8",
    )
    server.start()
    (folder / "secret").write_text(f"{SECRET}\r\nnot this\n", encoding="utf-8")
    plain = server.broker.model_copy(update={"username": "emo", "password_file": folder / "secret"})
    yield {
        "tcp": plain,
        "websockets": plain.model_copy(update={"port": ports["websockets"], "transport": "websockets"}),
        "tls": plain.model_copy(update={"port": ports["tls"], "tls": Tls(ca=site.ca / "ca.crt")}),
    }
    server.stop()
    site.close()


@pytest.mark.parametrize("way", ["tcp", "websockets", "tls"])
def test_messages_pass_where_a_password_is_wanted(strict, way):
    with mqtt(strict[way]) as link:
        there = link.end("there", [subscription(link.root, Update)]).start()
        here = link.end("here", []).start()
        here.channel.publish(update(size=50_000))
        assert there.wait(1)[0].weights["w"].size == 50_000
    found = probe(strict[way])
    assert (found.version, found.window, found.retained_by_wildcard) == ("5", 20, True)
    strict[way].password_file.chmod(0o644)
    assert "can be read by others" in str(list(broker_checks.findings(strict[way], found)))
    strict[way].password_file.chmod(0o600)
    assert {level for level, *_ in broker_checks.findings(strict[way], found)} == {"ok"}


def test_a_password_from_the_environment(strict, monkeypatch, tmp_path, capsys, signals):
    config = tmp_path / "device.yaml"
    config.write_text(f"id: d\nwan: {{port: {strict['tcp'].port}, username: emo}}\n", encoding="utf-8")
    monkeypatch.setattr(doctor, "_STEP", "print('fine')")
    monkeypatch.setattr(doctor, "_READY", 'print(\'{"ok": true, "detail": "it would start"}\')')
    monkeypatch.setenv("EMO_WAN__PASSWORD", SECRET)
    main(["doctor", "--config", str(config)])
    assert "MQTT 5, answers" in capsys.readouterr().out
    monkeypatch.setenv("EMO_WAN__PASSWORD", "wrong")
    assert main(["doctor", "--config", str(config)]) == 1
    (told,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("FAIL")]
    assert "Not authorized" in told
    assert "password" in told.partition("->")[2]
    assert "start it" not in told


@pytest.mark.parametrize("way", ["tcp", "websockets"])
def test_who_is_not_let_in_is_told_what_is_missing(strict, way, caplog):
    stranger = strict[way].model_copy(update={"username": None, "password_file": None})
    with pytest.raises(LoginError) as caught:
        probe(stranger)
    assert broker_checks.remedy(caught.value, stranger) == connection.login(stranger)
    with mqtt(stranger) as link, caplog.at_level(logging.WARNING, "emo"):
        here = link.end("here", [])
        here.channel.start(here)
        with pytest.raises(BrokerError):
            here.channel.wait_connected(1)
    assert "Not authorized; it wants to know who this is: set username and password_file" in caplog.text


def test_a_closed_port_a_wrong_way_and_a_wrong_path_are_other_faults(strict):
    for broker, word in (
        (Broker(port=free_port()), "transport"),
        (strict["websockets"].model_copy(update={"transport": "tcp"}), "transport"),
        (strict["tcp"].model_copy(update={"transport": "websockets"}), "path"),
    ):
        with pytest.raises(BrokerError) as caught:
            probe(broker, timeout_s=2)
        remedy = broker_checks.remedy(caught.value, broker)
        assert remedy.startswith("start it")
        assert word in remedy


@pytest.mark.parametrize("held", [None, b"", b"\xff\n", b"x" * 70_000])
def test_a_password_file_that_holds_none(strict, held, tmp_path):
    path = tmp_path / "secret"
    if held is not None:
        path.write_bytes(held)
    broker = strict["tcp"].model_copy(update={"password_file": path})
    for use in (lambda: mqtt(broker).__enter__().end("here", []), lambda: probe(broker)):
        with pytest.raises(ConfigError, match="secret"):
            use()


@pytest.mark.parametrize("way", ["tcp", "websockets", "tls"])
def test_a_connection_of_any_kind_can_be_cut(strict, way):
    with mqtt(strict[way]) as link:
        here = link.end("here", []).start()
        client = here.channel._client
        assert isinstance(client, paho.Client)
        mqtt_client.cut(client)
        here.counted("mqtt.disconnected", 1)
        here.channel.wait_connected(10)
