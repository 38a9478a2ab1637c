"""Runs one edge: `emo edge`, or `torchrun --nproc-per-node N -m edge_app.run --config FILE` for one on N GPUs."""

import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.intervals.log_file import IntervalLog
from edge_app.node import EdgeNode
from edge_app.overlay import multi_gpu
from edge_app.overlay.checkpoint import CheckpointFile
from edge_app.overlay.trainer import Trainer
from edge_app.ready import ready
from emo import files, logs
from emo.config import EdgeConfig
from emo.config_file import load
from emo.errors import EmoError
from emo.journal import Journal
from emo.mqtt.channel import MqttChannel
from emo.parser import Parser
from emo.runtime import machine
from emo.runtime.heartbeat import HeartbeatWriter, beating
from emo.runtime.runner import Runner, stop_on
from emo.wire.topics import filters

log = logging.getLogger("emo")


def run(config: EdgeConfig, stop: threading.Event) -> None:
    """Run until `stop` is set. Raises EmoError on what does not fit, before anything connects."""
    world = multi_gpu.world()
    if world is not None and world.rank > 0:
        multi_gpu.worker(config, world)
        return
    torch.set_num_threads(config.threads)
    ready(config)
    device = world.device() if world else "cuda" if torch.cuda.is_available() else "cpu"
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.alone(config.state_dir))
        journal, settings = Journal(config.state_dir), config.cache
        journal.event("start", tier="edge", id=config.id, pid=os.getpid())
        # Else numpy would take every core to compare activations.
        stack.enter_context(threadpool_limits(config.threads, "blas"))
        disk = stack.enter_context(
            DiskCache(
                settings.dir,
                settings.budget_mib and settings.budget_mib << 20,
                settings.eviction,
                durability=settings.durability,
                say=lambda count: log.info("%s: %d batches found so far", settings.dir, count),
            )
        )
        interval_log = stack.enter_context(IntervalLog(settings.dir, journal))
        checkpoint = stack.enter_context(CheckpointFile(settings.dir, journal))
        cache = stack.enter_context(
            contextlib.closing(
                ReplayCache(
                    disk,
                    settings.memory_mib << 20,
                    config.overlay.seed,
                    device,
                    settings.sampling,
                    settings.memory_share,
                )
            )
        )
        trainer = stack.enter_context(multi_gpu.Leader(world, stop.set)).trainer if world else Trainer
        node = EdgeNode(config, cache, journal, device, interval_log, checkpoint, trainer)
        node.prepare()
        for gauges in (node.gauges, machine.gauges, lambda: machine.disk(settings.dir)):
            journal.watch(gauges)
        wan = filters(config.wan.root, "edge", "wan", member=config.id)
        lan = filters(config.lan.root, "edge", "lan", edge=config.id)
        name, will, limits = f"{config.wan.root}-{config.id}", node.hello(online=False), node.limits()
        channels = {
            "wan": MqttChannel(config.wan, f"{name}-wan", wan, journal, will, limits),
            "lan": MqttChannel(config.lan, f"{name}-lan", lan, journal, limits=limits),
        }
        heart = HeartbeatWriter(
            config.state_dir,
            "edge",
            config.id,
            lambda: {link: c.connected for link, c in channels.items()},
            trouble=lambda: node.trouble.why,
        )
        with beating([heart]):
            Runner(node, channels, journal, turned=heart.turned, report_s=config.report_s).run(stop)
        node.close()


def main() -> int:
    """What torchrun starts for each GPU."""
    parser = Parser(prog="python -m edge_app.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the edge's own")
    logs.configure()
    stop = threading.Event()
    stop_on(stop, signal.SIGTERM, signal.SIGINT)
    try:
        run(load(EdgeConfig, parser.parse_args().config), stop)
    except EmoError as error:
        log.error("%s", error)  # noqa: TRY400 - bad input is no bug
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
