"""Runs the observer: a fleet's, or a record's of a run that is over."""

import os
import threading
from pathlib import Path

from cloud_app.watch.http.server import Door, serving
from cloud_app.watch.observer import Observer
from cloud_app.watch.view import View
from cloud_app.watch.watcher import Watcher
from emo import files
from emo.config import WatchConfig
from emo.journal import Journal
from emo.mqtt.channel import MqttChannel
from emo.runtime import machine
from emo.runtime.heartbeat import HeartbeatWriter, beating
from emo.runtime.runner import Runner
from emo.security import members
from emo.wire.messages import Status
from emo.wire.topics import filters


def run(
    config: WatchConfig, stop: threading.Event, folder: Path | None, tensorboard: Path | None, mlflow: str | None
) -> int:
    """Until `stop` is set. `folder`: of a run that is over, in place of the fleet. Raises EmoError on what does not fit, before
    anything connects."""
    del tensorboard, mlflow
    door = Door(config)
    try:
        if folder is not None:
            return 0
        with files.alone(config.state_dir):
            _watch(config, stop, door)
    finally:
        door.close()
    return 0


def _watch(config: WatchConfig, stop: threading.Event, door: Door) -> None:
    journal = Journal(config.state_dir)
    journal.event("start", tier="observer", id=config.id, pid=os.getpid())
    view = View(config.nodes, members.load(config.fleet) if config.fleet is not None else None)
    broker = f"{config.wan.host}:{config.wan.port}"
    watcher = Watcher(view, config.id, "mqtt", broker, figures=journal.snapshot)
    root, will = config.wan.root, Status(config.id, "observer", online=False)
    channel = MqttChannel(config.wan, f"{root}-{config.id}-wan", filters(root, "observer", "wan"), journal, will)
    heart = HeartbeatWriter(config.state_dir, "observer", config.id, lambda: {"wan": channel.connected})
    journal.watch(machine.gauges)
    node = Observer(config.id, watcher, lambda: channel.connected)
    with beating([heart]), serving(door, watcher, f"{root} at {broker}"):
        Runner(node, {"wan": channel}, journal, turned=heart.turned).run(stop)
