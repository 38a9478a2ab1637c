"""What a healthy run says: a line when connected, one a round, one when done; and what it waits for."""

import logging
import re

import pytest
from clouds import cloud, opened, update
from fleet import Fleet

from emo import logs
from emo.config import Broker
from emo.mqtt.connection import ConnectionState

pytestmark = pytest.mark.usefixtures("one_thread")


def said(caplog, start):
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    return [text for text in found if text.startswith(start)]


def test_each_tier_tells_of_its_rounds_and_its_end(tmp_path, caplog):
    fleet = Fleet(tmp_path, devices=3, rounds=3, per_round=3)
    with caplog.at_level(logging.INFO, "emo"):
        fleet.run()
        fleet.network.pump()
    fleet.close()
    first, *rounds, last = said(caplog, "device-1: ")
    assert first == "device-1: run run-1"
    assert [re.sub(r"[\d.]+$", "x", text) for text in rounds] == [
        f"device-1: round {n} trained, loss x" for n in (1, 2, 3)
    ]
    assert "no more rounds" in last
    lines = said(caplog, "edge-2: ")
    assert [re.match(r"edge-2: (round \d/\d|the [a-z]+)", text)[1] for text in lines] == [
        "round 1/3",
        "round 2/3",
        "round 3/3",
        "the rounds",
        "the overlay",
        "the run",
    ]
    assert said(caplog, "the overlay of edge-1 has come")
    assert said(caplog, "the rounds are over; waiting for the overlays of edge-1, edge-2")


def test_the_cloud_says_every_ten_seconds_whose_overlay_it_waits_for(caplog):
    node = cloud(rounds=1)
    opened(node)
    with caplog.at_level(logging.INFO, "emo"):
        for name in "abcd":
            list(node.handle(update(name), 1))
        assert node.state.phase == "overlays"
        for now in (2.0, 3.0, 4.0):
            list(node.tick(now))
        assert said(caplog, "waiting for the overlays of e, ") == []
        node._timer._logged = -20.0
        list(node.tick(4.5))
    assert len(said(caplog, "waiting for the overlays of e, ")) == 1


def test_a_first_connection_is_told_later_ones_only_after_trouble(caplog):
    health = ConnectionState(Broker(port=18830), "d")
    with caplog.at_level(logging.DEBUG, "emo"):
        for trouble in (None, None, "is away"):
            if trouble:
                health.say(trouble)
            health.connected(None)
    connected = [r.levelno for r in caplog.records if "connected to 127.0.0.1:18830" in r.getMessage()]
    assert connected == [logging.INFO, logging.DEBUG, logging.INFO]


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose_tells_of_connections_and_not_of_what_libraries_do(verbose):
    root, ours = logging.getLogger(), logging.getLogger("emo")
    kept, levels = list(root.handlers), (root.level, ours.level)
    root.handlers.clear()
    try:
        logs.configure(verbose)
        for name in ("amqtt.broker", "asyncio", "onnx_ir", "torch.onnx", "uvicorn"):
            assert not logging.getLogger(name).isEnabledFor(logging.INFO)
            assert logging.getLogger(name).isEnabledFor(logging.WARNING)
        assert ours.isEnabledFor(logging.DEBUG) == verbose
    finally:
        root.handlers[:] = kept
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
