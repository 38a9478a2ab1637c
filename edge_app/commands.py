"""`emo edge`, `emo edge intervals`."""

import argparse
import json
import threading
import time
from pathlib import Path

from emo.config import EdgeConfig
from emo.config_file import load
from emo.errors import ConfigError, nearest
from emo.extras import needs
from emo.parser import GRACEFUL, Commands


def register(commands: Commands) -> None:
    edge = commands.add("edge", _edge, "run an edge", "edge", GRACEFUL)
    # Required too, but not before a subcommand.
    edge.add_argument("--config", type=Path, metavar="FILE", help="the edge's own (default: none; must be given)")
    text = "the table of an edge, running or not: when each batch comes again"
    option = Commands(edge, "[intervals]").add("intervals", _intervals, text, "edge").add_argument
    option("--config", type=Path, required=True, metavar="FILE", help="the edge's own")
    option("--device", metavar="ID", help="only this device's batches (default: all)")
    option("--json", action="store_true", help="print the table as one JSON object")


def _edge(args: argparse.Namespace, stop: threading.Event) -> int:
    if args.config is None:
        raise ConfigError("which edge? Say --config FILE; `emo init DIR` writes examples.")
    settings = load(EdgeConfig, args.config)
    with needs("edge"):
        from edge_app.run import run
    run(settings, stop)
    return 0


def _intervals(args: argparse.Namespace, _stop: threading.Event) -> int:
    settings = load(EdgeConfig, args.config)
    if args.device is not None and args.device not in settings.devices:
        raise ConfigError(
            f"{args.config}: no device {args.device!r} in devices; {nearest(args.device, settings.devices)}"
        )
    with needs("edge"):
        from edge_app.intervals import log_file
    run, rows = log_file.read(settings.cache.dir)
    rows = [row for row in rows if args.device in (None, row[0].device)]
    cap = min(settings.controller.max_interval, settings.controller.max_age)
    if not args.json:
        print(log_file.text(run, rows, cap, time.time()))
        return 0
    mean, capped = log_file.summary(rows, cap)
    table = {"edge": settings.id, "run": run, "mean_interval": mean, "share_at_cap": capped, "cap": cap}
    print(json.dumps({**table, "rows": [log_file.as_json(*row) for row in rows]}))
    return 0
