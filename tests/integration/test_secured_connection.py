"""Who gets no connection, to a real Mosquitto and from a node; and what a question or a reload does to those who are connected."""

import contextlib
import logging
import queue
import re
import socket
import ssl
import threading
import time

import pytest
from links import Hears
from secured import Rogue, Site

from emo.config import Broker
from emo.errors import BrokerError
from emo.journal import Journal
from emo.mqtt import tls
from emo.mqtt.channel import MqttChannel
from emo.mqtt.probe import probe
from emo.runtime.channel import Listener
from emo.wire.messages import RunState, Status
from emo.wire.topics import subscription


def reference(site, link, name, files=None):
    return site.lines[link].broker.model_copy(update={"tls": files or site.node(name)})


# -- who gets no connection at all


@pytest.fixture(scope="module")
def other(mosquitto_program, tmp_path_factory):
    return Site(tmp_path_factory.mktemp("other"), mosquitto_program)


def nobody(site, _other):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(site.ca / "ca.crt")
    return context


def revoked(site, _other):
    files = site.node("device-98")
    site.revoke("device-98")
    return files


STRANGERS = {
    "no certificate": (nobody, None),
    "expired": (lambda site, _: site.made("device-01", start=-3, end=-1), "for expired"),
    "not valid yet": (lambda site, _: site.made("device-01", start=1, end=2), "not valid yet"),
    "revoked": (revoked, "was revoked"),
    "another CA": (
        lambda site, other: other.node("device-01").model_copy(update={"ca": site.ca / "ca.crt"}),
        "does not know the CA",
    ),
    "a broker's": (lambda site, _: site.made("edge-1", "broker"), "is no node's"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_who_gets_no_connection(site, other, kind, monkeypatch):
    make, said = STRANGERS[kind]
    files = make(site, other)
    context = files if isinstance(files, ssl.SSLContext) else tls.context(files)
    for daemon in site.lines.values():
        until = time.monotonic() + 5  # a reload, where there was one, is on its way
        while (rogue := Rogue(daemon, context, "emo-device-01-wan")).connected:
            rogue.close()
            assert time.monotonic() < until, kind
    if said is not None:
        monkeypatch.setattr(tls, "validity", lambda _path: None)  # our clock would know, too
        assert said in tls.trouble(reference(site, "wan", "", files))


def test_nobody_speaks_without_tls(site):
    daemon = site.lines["wan"]
    plain = Rogue(daemon, None, "emo-device-01-wan")
    assert not plain.connected
    plain.close()
    with pytest.raises(BrokerError, match="is no MQTT broker"):
        probe(daemon.broker, timeout_s=1)
    old = tls.context(site.node("device-01"))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert not Rogue(daemon, old, "a").connected


# -- whom a node does not trust


@contextlib.contextmanager
def impostor(files):
    """A TLS server with these files; counts the handshakes that clients have finished."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    served = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    plain, _ = server.accept()
                    with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as secure:
                        served.append(secure.recv(1))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], served
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


IMPOSTORS = {
    "expired": (lambda site, _: site.made("edge-1", "broker", start=-3, end=-1), "127.0.0.1", "has expired"),
    "not valid yet": (lambda site, _: site.made("edge-1", "broker", 1, 2), "127.0.0.1", "is not valid yet"),
    "another CA": (
        lambda _, other: other.made("edge-1", "broker"),
        "127.0.0.1",
        r"is not of the CA in tls\.ca",
    ),
    "another host": (
        lambda site, _: site.made("edge-1", "broker"),
        "localhost",
        "is not for 'localhost'.*--host",
    ),
    "a device": (lambda site, _: site.made("device-02"), "127.0.0.1", "is not a broker's"),
}


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_a_node_tells_an_impostor_nothing(site, other, kind, caplog):
    make, host, said = IMPOSTORS[kind]
    with impostor(make(site, other)) as (port, served):
        broker = Broker(host=host, port=port, tls=site.node("device-01"))
        channel = MqttChannel(broker, "emo-device-01-wan", [], Journal(), Status("device-01", "device", False))
        with caplog.at_level(logging.WARNING, "emo"):
            channel.start(Listener())
            until = time.monotonic() + 10
            while not re.search(said, caplog.text):
                assert time.monotonic() < until, caplog.text
                time.sleep(0.02)
        channel.stop(drain_s=0)
        with pytest.raises(BrokerError, match=said):
            probe(broker, timeout_s=2)
    assert not any(served)


def test_a_broker_that_was_revoked(site):
    files = site.made("edge-1", "broker")
    mine = site.node("device-01")
    crl = mine.ca.with_name("crl.pem")
    with impostor(files) as (port, _):
        broker = Broker(port=port, tls=mine)
        crl.write_bytes(site.revoking(files))
        try:
            assert re.search("was revoked", tls.trouble(broker))
        finally:
            crl.unlink()


def test_what_speaks_no_tls(site, broker):
    files = site.node("device-01")
    with pytest.raises(BrokerError, match=r"speaks no TLS there; correct port|hangs up"):
        probe(broker.model_copy(update={"tls": files}), timeout_s=2)


# -- doctor's question, and what a reload does


@pytest.fixture
def channel(site):
    """Of a node at the WAN broker, as its tier has it; and what it gets."""
    made = []

    def start(name, *kinds):
        got = queue.Queue()
        filters = [subscription("emo", kind) for kind in kinds]
        made.append(MqttChannel(reference(site, "wan", name), f"emo-{name}-wan", filters, Journal()))
        made[-1].start(Hears(got.put))
        made[-1].wait_connected(10)
        return made[-1], got

    yield start
    for each in made:
        each.stop()
        assert each._journal.counts["mqtt.publish_refused"] == 0


def test_a_channel_as_the_tiers_have_it(channel):
    _, got = channel("edge-2", RunState)
    cloud, _ = channel("cloud")
    cloud.publish(RunState("run", 1, 2, "training"))
    assert got.get(timeout=10) == RunState("run", 1, 2, "training")


def test_asking_leaves_the_nodes_session_alone(site, channel):
    edge, got = channel("edge-2", RunState)
    cloud, _ = channel("cloud")
    cloud.publish(RunState("run", 1, 2, "training"))
    assert got.get(timeout=10).round == 1
    found = probe(reference(site, "wan", "edge-2"))
    assert (found.version, found.max_packet) == ("5", 266240)
    until = time.monotonic() + 10
    while not edge._journal.counts["mqtt.disconnected"] or not edge.connected:
        assert time.monotonic() < until
        time.sleep(0.02)
    cloud.publish(RunState("run", 2, 2, "training"))
    while got.get(timeout=10).round != 2:  # it is subscribed still
        pass


def test_a_reload_takes_rights_from_who_is_connected(site, client):
    mine, other = client("wan", "device-02"), client("wan", "device-01")
    site.members("device-02", there=False)
    try:
        until = time.monotonic() + 5
        while mine.publish("emo/wan/update/device-02") != 0x87:
            assert time.monotonic() < until
        assert other.publish("emo/wan/update/device-01") in {0, 0x10}
        assert mine.connected
        assert other.connected
    finally:
        site.members("device-02", there=True)
    until = time.monotonic() + 5
    while mine.publish("emo/wan/update/device-02") == 0x87:
        assert time.monotonic() < until


def test_a_reload_takes_another_ca_and_lets_the_old_one_go(mosquitto_program, tmp_path):
    site = Site(tmp_path, mosquitto_program)
    daemon = site.broker()

    def comes_in(files, wanted):
        context = tls.context(files.model_copy(update={"ca": site.ca / "ca.crt"}))
        until = time.monotonic() + 5
        while True:
            rogue = Rogue(daemon, context, "x")
            found = rogue.connected
            rogue.close()
            if found == wanted:
                return
            assert time.monotonic() < until, rogue.refused

    try:
        of_old = site.made("device-01")
        with Rogue(daemon, tls.context(site.node("cloud")), "x") as stays:
            site.rotate()
            of_new = site.made("device-02")
            site.spread()
            comes_in(of_new, wanted=True)
            comes_in(of_old, wanted=True)
            site.renew_brokers()
            site.renew("cloud")
            site.rotate("--finish")
            site.spread()
            comes_in(of_old, wanted=False)
            comes_in(of_new, wanted=True)
            assert stays.publish("emo/wan/global/0") in {0, 0x10}
    finally:
        site.close()
