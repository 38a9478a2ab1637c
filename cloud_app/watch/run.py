"""Runs the observer: a fleet's, or a record's of a run that is over."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from cloud_app.watch.http.server import Door, serving
from cloud_app.watch.observer import Observer
from cloud_app.watch.sinks.feeder import Log
from cloud_app.watch.sinks.logs import feeding, in_repository
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


def run(config: WatchConfig, stop: threading.Event, folder: Path | None, logs: Sequence[Log]) -> int:
    """Until `stop` is set. `folder`: of a run that is over, in place of the fleet. `logs`: that the run is logged to, too. Raises
    EmoError on what does not fit, before anything connects."""
    door = Door(config)
    try:
        if folder is not None:
            return 0
        with files.alone(config.state_dir):
            _watch(config, stop, door, logs)
    finally:
        door.close()
    return 0


def _watch(config: WatchConfig, stop: threading.Event, door: Door, logs: Sequence[Log]) -> None:
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
    model = in_repository(config.models, config.endpoint.name if config.endpoint else "emo")
    logged = feeding(logs, watcher, journal, model)
    with beating([heart]), serving(door, watcher, f"{root} at {broker}"), logged:
        Runner(node, {"wan": channel}, journal, turned=heart.turned).run(stop)
