"""Brokers that take small packets only: a limit that is named is kept, one that is not is found, and nothing is held up."""

import dataclasses

import paho.mqtt.client as paho
import pytest
from brokers import Mosquitto, Proxy
from links import mqtt, update

from emo.mqtt.probe import probe
from emo.wire import topics
from emo.wire.messages import Update
from emo.wire.topics import subscription

pytestmark = pytest.mark.usefixtures("quick")


def test_a_brokers_packet_limit_is_kept(mosquitto_program, tmp_path):
    server = Mosquitto(mosquitto_program, tmp_path, "max_packet_size 3000")
    server.start()
    try:
        with mqtt(server.broker) as link:
            there, here = (
                link.end("there", [subscription(link.root, Update)]).start(),
                link.end("here", []).start(),
            )
            here.channel.publish(update(size=5000))
            there.wait(1)
            assert here.journal.counts["mqtt.disconnected"] == 0
    finally:
        server.stop()


@pytest.mark.parametrize("option", ["max_packet_size 3000", "message_size_limit 3000"])
def test_a_message_that_is_too_large_holds_up_nothing(mosquitto_program, tmp_path, option, monkeypatch):
    monkeypatch.setitem(topics.ROUTES, Update, dataclasses.replace(topics.ROUTES[Update], limit=10_000))
    server = Mosquitto(mosquitto_program, tmp_path, option)
    server.start()
    try:
        with mqtt(server.broker) as link:
            there = link.end("there", [subscription(link.root, Update)]).start()
            here = link.end("here", []).start()
            here.channel.publish(update("large", size=5000))
            here.channel.publish(update("small"))
            assert [message.device for message in there.wait(1)] == ["small"]
            assert here.journal.counts["messages.refused"] == 1
            assert here.journal.counts["mqtt.disconnected"] == 0
    finally:
        server.stop()


@pytest.mark.parametrize("level", [5, 4], ids=["5", "3.1.1"])
def test_a_limit_that_the_broker_does_not_name_is_found(mosquitto_program, tmp_path, level):
    # message_size_limit: to MQTT 5 a PUBACK that paho takes for a protocol error, so that it would send the same
    # for ever. max_packet_size: to 3.1.1 a closed connection.
    options = {5: "message_size_limit 3000", 4: "max_packet_size 3000"}
    server = Mosquitto(mosquitto_program, tmp_path, options[level])
    server.start()
    proxy = Proxy(server.broker)
    proxy.hangs_up, proxy.polite = (lambda asked: asked > level), True
    try:
        with mqtt(proxy.broker) as link:
            there = link.end("there", [subscription(link.root, Update)]).start()
            here = link.end("here", []).start()
            here.channel.publish(update("large", size=5000))
            here.channel.publish(update("small"))
            assert {message.device for message in there.wait(2, timeout=20)} == {"large", "small"}
    finally:
        proxy.close()
        server.stop()


def test_a_packet_that_none_of_ours_sends_does_not_come(broker):
    with mqtt(broker) as link:
        there = link.end("there", [subscription(link.root, Update)]).start()
        stranger = paho.Client(paho.CallbackAPIVersion.VERSION2)
        stranger.connect(broker.host, broker.port)
        stranger.loop_start()
        for size in (2 << 20, 1 << 20):  # more than a chunk may have, and just as much
            stranger.publish(f"{link.root}/wan/update/dev-1", bytes(size), qos=1).wait_for_publish(10)
        stranger.loop_stop()
        stranger.disconnect()
        link.end("here", []).start().channel.publish(update())
        there.wait(1)
        assert there.journal.counts["frames.refused"] == 1
        assert there.journal.counts["mqtt.disconnected"] == 0


def test_a_broker_that_takes_next_to_nothing_is_named_and_nothing_hangs(mosquitto_program, tmp_path, caplog):
    server = Mosquitto(mosquitto_program, tmp_path, "max_packet_size 1400")
    server.start()
    try:
        with mqtt(server.broker) as link:
            here = link.end("here", []).start()
            here.channel.publish(update())
            here.counted("messages.refused", 1)
            assert "max_packet_size" in caplog.text
    finally:
        server.stop()


# -- emo doctor finds such brokers by trying


@pytest.mark.parametrize("level", [5, 4], ids=["5", "3.1.1"])
def test_probe_measures_the_window_and_what_a_wildcard_brings(mosquitto_program, tmp_path, level):
    server = Mosquitto(mosquitto_program, tmp_path, "max_inflight_messages 3")
    server.start()
    proxy = Proxy(server.broker)
    proxy.hangs_up, proxy.polite = (lambda asked: asked > level), True
    retained = []

    def drops(packet):  # as RabbitMQ: what is retained comes to an exact filter, which is asked first
        if packet[0] & 0xF1 == 0x31:
            retained.append(packet)
            return len(retained) > 1
        return False

    try:
        found = probe(proxy.broker)
        # Mosquitto heeds its max_inflight_messages for 3.1.1 only.
        assert (found.window, found.retain, found.retained_by_wildcard) == ({5: 20, 4: 3}[level], True, True)
        proxy.drops = drops
        found = probe(proxy.broker)
        assert (found.retain, found.retained_by_wildcard) == (True, False)
        proxy.drops = lambda packet: packet[0] & 0xF1 == 0x31
        assert not probe(proxy.broker).retain
        newcomer = retained_under(server.broker, "#")
        assert newcomer == []  # it leaves nothing behind
    finally:
        proxy.close()
        server.stop()


@pytest.mark.parametrize("level", [5, 4], ids=["5", "3.1.1"])
def test_probe_judges_no_broker_whose_rules_let_nothing_through(mosquitto_program, tmp_path, level):
    (tmp_path / "acl").write_text("topic readwrite elsewhere/#\n", encoding="utf-8")
    server = Mosquitto(mosquitto_program, tmp_path, f"acl_file {tmp_path / 'acl'}")
    server.start()
    proxy = Proxy(server.broker)
    proxy.hangs_up, proxy.polite = (lambda asked: asked > level), True
    try:
        found = probe(proxy.broker)
        assert (found.window, found.retain, found.retained_by_wildcard) == (None, True, True)
    finally:
        proxy.close()
        server.stop()


def retained_under(broker, pattern):
    got, client = [], paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.on_message = lambda _client, _data, message: got.append(message.topic)
    client.on_connect = lambda *_: client.subscribe(pattern, qos=1)
    client.connect(broker.host, broker.port)
    for _ in range(10):
        client.loop(0.02)
    client.disconnect()
    return got
