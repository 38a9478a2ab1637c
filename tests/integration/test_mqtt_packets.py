"""Brokers that take small packets only: a limit that is named is kept, one that is not is found, and nothing is held up."""

import dataclasses

import pytest
from brokers import Mosquitto, Proxy
from links import mqtt, update

from emo import topics
from emo.messages import Update
from emo.topics import subscription

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
