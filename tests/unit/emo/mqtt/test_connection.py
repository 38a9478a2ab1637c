"""What a connection's fate teaches: how large a packet may be, and what the user is told."""

import logging

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from emo.config import Broker
from emo.errors import TooLarge
from emo.mqtt import connection
from emo.mqtt.connection import ConnectionState


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(connection.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def link(clock):
    def live(seconds, unsent=True, max_packet=None):
        link.connected(max_packet)
        clock.now += seconds
        return link.disconnected(True, "lost", unsent)

    link = ConnectionState(Broker(chunk_kib=256), "dev-1")
    link.live = live
    return link


def test_a_packet_is_no_larger_than_the_broker_says(link):
    assert link.chunk() == 256 * 1024
    link.connected(100_000)
    assert link.chunk() == 100_000 - 1024
    link.connected(None)
    assert link.chunk() == 256 * 1024
    link.connected(1500)
    with pytest.raises(TooLarge, match="1500 bytes only"):
        link.chunk()


def test_connections_that_die_young_under_load_make_packets_smaller(link):
    said = [link.live(0.1) for _ in range(4)]
    assert said == [False, True, False, True]
    assert link.chunk() == 16 * 1024
    for _ in range(20):
        link.live(0.1)
    assert 1024 <= link.chunk() < 2048


def test_a_connection_that_lasts_makes_them_large_again(link):
    for _ in range(2):
        link.live(0.1)
    link.live(60)
    assert link.chunk() == 256 * 1024


def test_idle_connections_and_failed_ones_teach_nothing(link, clock):
    assert not any(link.live(0.1, unsent=False) for _ in range(6))
    assert not any(link.disconnected(False, "no answer", True) for _ in range(6))
    assert link.chunk() == 256 * 1024
    assert link.failures == 7


def test_who_is_told_what(link, caplog):
    with caplog.at_level(logging.WARNING, "emo"):
        for _ in range(3):
            link.live(0.1)
    (text,) = [record.message for record in caplog.records]
    assert "an id of its own" in text
    assert "packets of 256 KiB" in text


def test_a_connect_without_an_answer(link, clock):
    link.opened()
    assert not link.unanswered()
    clock.now += 10
    assert link.unanswered()
    link.refused(ReasonCode(PacketTypes.CONNACK, "Banned"))
    assert not link.unanswered()


@pytest.mark.parametrize(
    ("reason", "values", "remedy"),
    [
        ("Not authorized", {}, "username and password_file"),
        ("Bad user name or password", {"username": "me"}, "correct username"),
        ("Not authorized", {"tls": {"cert": "c", "key": "k"}}, "fleet.yaml"),
        ("Server unavailable", {}, ""),
    ],
)
def test_who_is_not_let_in_is_told_what_to_do(reason, values, remedy, caplog):
    with caplog.at_level(logging.WARNING, "emo"):
        ConnectionState(Broker.model_validate(values), "d").refused(ReasonCode(PacketTypes.CONNACK, reason))
    assert f"refuses this client: {reason}" in caplog.text
    assert remedy in caplog.text
    assert bool(remedy) == ("; " in caplog.text)
