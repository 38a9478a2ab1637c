"""Runs one edge."""

import threading

import torch

from edge_app.cache import ReplayCache
from edge_app.cache.disk import DiskCache
from edge_app.node import EdgeNode
from edge_app.table import TableFile
from emo.config import EdgeConfig
from emo.journal import Journal
from emo.messages import ActivationBatch, RunState, TapReport
from emo.mqtt import MqttChannel
from emo.runner import Runner
from emo.topics import subscription


def run(config: EdgeConfig, stop: threading.Event) -> None:
    """Until `stop` is set. Raises EmoError on what does not fit, before anything connects."""
    torch.set_num_threads(config.threads)
    journal = Journal(config.state_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with DiskCache(config.cache.dir) as disk, TableFile(config.cache.dir, journal) as table:
        cache = ReplayCache(disk, config.cache.memory_mib << 20, config.overlay.seed, device)
        node = EdgeNode(config, cache, journal, device, table)
        lan = [subscription(config.lan.root, kind, edge=config.id) for kind in (ActivationBatch, TapReport)]
        name = f"{config.wan.root}-{config.id}"
        channels = {
            "wan": MqttChannel(
                config.wan,
                f"{name}-wan",
                [subscription(config.wan.root, RunState)],
                journal,
                node.hello(online=False),
            ),
            "lan": MqttChannel(config.lan, f"{name}-lan", lan, journal),
        }
        Runner(node, channels, journal, work=node.work).run(stop)
