"""Runs one device, or several in one process, each with its own connections; they train in turn."""

import contextlib
import os
import threading
from collections.abc import Sequence

import torch

from device_app.ready import ready
from emo import files
from emo.config import DeviceConfig
from emo.journal import Journal
from emo.mqtt.channel import MqttChannel
from emo.runtime import machine
from emo.runtime.heartbeat import HeartbeatWriter, beating
from emo.runtime.runner import Runner
from emo.wire.topics import filters


def run(configs: Sequence[DeviceConfig], stop: threading.Event, parallel: int = 1) -> None:
    """Run until `stop` is set. Raises EmoError on what does not fit, before anything connects."""
    torch.set_num_threads(configs[0].threads)
    turn = threading.Semaphore(parallel)
    with contextlib.ExitStack() as stack:
        for config in configs:
            stack.enter_context(files.alone(config.state_dir))
        runners = [_runner(config, turn) for config in configs]
        threads = [threading.Thread(target=runner.run, args=(stop,), daemon=True) for runner, _ in runners]
        stack.enter_context(beating([heart for _, heart in runners]))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _runner(config: DeviceConfig, turn: threading.Semaphore) -> tuple[Runner, HeartbeatWriter]:
    journal = Journal(config.state_dir)
    node = ready(config, journal)
    journal.event("start", tier="device", id=config.id, pid=os.getpid())
    node.prepare()
    journal.watch(node.gauges)
    journal.watch(machine.gauges)
    wan = filters(config.wan.root, "device", "wan", device=config.id, member=config.id)
    name, will = f"{config.wan.root}-{config.id}", node.hello(online=False)
    channels = {"wan": MqttChannel(config.wan, f"{name}-wan", wan, journal, will, node.limits())}
    if config.edge is not None and config.tap.enabled:
        lan = filters(config.lan.root, "device", "lan", edge=config.edge, device=config.id)
        channels["lan"] = MqttChannel(config.lan, f"{name}-lan", lan, journal)
    heart = HeartbeatWriter(
        config.state_dir,
        "device",
        config.id,
        lambda: {link: c.connected for link, c in channels.items()},
        trouble=lambda: node.trouble.why,
    )
    return Runner(node, channels, journal, turn=turn, turned=heart.turned, report_s=config.report_s), heart
