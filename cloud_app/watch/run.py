"""Runs the observer: a fleet's, or a record's of a run that is over."""

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from cloud_app.watch import past_run
from cloud_app.watch.endpoint import Endpoint, looking
from cloud_app.watch.http.app import Handler
from cloud_app.watch.http.server import Door, serving
from cloud_app.watch.http.tryit import TryIt
from cloud_app.watch.observer import Observer
from cloud_app.watch.record import Record, replay
from cloud_app.watch.sinks.feeder import Log
from cloud_app.watch.sinks.logs import feeding, in_repository, of_run
from cloud_app.watch.view import View
from cloud_app.watch.watcher import Watcher, keeping
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
            _show(config, stop, door, folder, logs)
        else:
            with files.alone(config.state_dir):
                _watch(config, stop, door, logs)
    finally:
        door.close()
    return 0


def _watch(config: WatchConfig, stop: threading.Event, door: Door, logs: Sequence[Log]) -> None:
    endpoint = None if config.endpoint is None else Endpoint(config.endpoint)
    journal = Journal(config.state_dir)
    journal.event("start", tier="observer", id=config.id, pid=os.getpid())
    view = View(config.nodes, members.load(config.fleet) if config.fleet is not None else None)
    replay(config.state_dir, view, journal)
    record = Record(config.state_dir, config.record_mib << 20, journal)
    broker = f"{config.wan.host}:{config.wan.port}"
    watcher = Watcher(view, config.id, "mqtt", broker, record, figures=journal.snapshot)
    watcher.link(up=False)
    root, will = config.wan.root, Status(config.id, "observer", online=False)
    channel = MqttChannel(config.wan, f"{root}-{config.id}-wan", filters(root, "observer", "wan"), journal, will)
    heart = HeartbeatWriter(config.state_dir, "observer", config.id, lambda: {"wan": channel.connected})
    journal.watch(machine.gauges)
    node = Observer(config.id, watcher, lambda: channel.connected)
    model = in_repository(config.models, config.endpoint.name if config.endpoint else "emo")
    with ExitStack() as stack:
        stack.enter_context(keeping(watcher))
        stack.enter_context(beating([heart]))
        more = dict[tuple[str, str], Handler]()
        if endpoint is not None:
            stack.enter_context(looking(endpoint, watcher))
            more["POST", "/api/try"] = stack.enter_context(closing(TryIt(endpoint.answers)))
        stack.enter_context(serving(door, watcher, f"{root} at {broker}", more))
        stack.enter_context(feeding(logs, watcher, journal, model))
        Runner(node, {"wan": channel}, journal, turned=heart.turned).run(stop)


def _show(config: WatchConfig, stop: threading.Event, door: Door, folder: Path, logs: Sequence[Log]) -> None:
    journal, view = Journal(), View(config.nodes)
    last = past_run.tell(folder, view, journal)
    watcher = Watcher(view, config.id, "record", str(folder), clock=lambda: last, figures=journal.snapshot)
    with serving(door, watcher, str(folder)), feeding(logs, watcher, journal, of_run(folder)):
        stop.wait()
