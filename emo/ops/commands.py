"""`emo init`, `emo check`, `emo doctor`, `emo health`."""

import argparse
import json
import threading
from pathlib import Path

from emo.config_file import any_tier
from emo.logs import printable
from emo.parser import Commands
from emo.runtime import heartbeat


def register(commands: Commands) -> None:
    init = commands.add("init", _init, "write commented example configurations that run as they are")
    init.add_argument("folder", type=Path, metavar="DIR", help="where they go; nothing there is overwritten")

    text = "do the configurations of a fleet work, and fit each other? 0: yes, 1: no"
    option = commands.add("check", _check, text).add_argument
    text = "every node's configuration; - for standard input: one after each line of ---"
    option("files", type=Path, nargs="+", metavar="FILE", help=text)
    text = "the cloud and each edge have a broker of their own, as `emo broker` makes them"
    option("--own-brokers", action="store_true", help=text)
    option("--json", action="store_true", help="print {ok, nodes, wrong}")

    text = "check this machine, a configuration and its brokers; say what to do"
    option = commands.add("doctor", _doctor, text).add_argument
    option(
        "--config",
        type=Path,
        metavar="FILE",
        help="a node's configuration, and what it needs (default: this machine only)",
    )
    option("--json", action="store_true", help="print the checks as one JSON object")

    text = "is the node of a configuration alive? 0: yes, 1: no"
    option = commands.add("health", _health, text).add_argument
    option("--config", type=Path, nargs="+", required=True, metavar="FILE", help="one file a node")
    option(
        "--max-age",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds since its last sign of life, at most",
    )
    option("--connected", action="store_true", help="its brokers must be there too")
    option("--json", action="store_true", help="print the nodes as one JSON object")


def _init(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo.ops import example_configs

    example_configs.init(args.folder)
    return 0


def _check(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo.ops import fleet_check

    nodes, wrong = fleet_check.read(args.files)
    if not wrong:  # without a node that could not be read, others would seem wrong
        wrong = list(fleet_check.wrong(nodes, args.own_brokers))
    if args.json:
        print(json.dumps({"ok": not wrong, "nodes": len(nodes), "wrong": wrong}))
    else:
        print("\n".join(map(printable, wrong)) or f"ok: {fleet_check.count(nodes)}, and they fit each other")
    return int(bool(wrong))


def _doctor(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo.ops import doctor

    return doctor.run(args.config, args.json)


def _health(args: argparse.Namespace, _stop: threading.Event) -> int:
    nodes = []
    for path in args.config:
        config = any_tier(path)
        beat = heartbeat.read(config.state_dir)
        if beat is None:
            wrong, age, details = f"{config.state_dir}: no heartbeat: it was never started", None, {}
        else:
            wrong = beat.wrong(args.max_age, args.connected)
            age = None if beat.age_s() == float("inf") else round(beat.age_s(), 1)
            details = beat.model_dump(include={"tier", "turned_s", "brokers", "about"})
        nodes.append({"id": config.id, "ok": not wrong, "why": wrong, "age_s": age, **details})
    all_ok = all(node["ok"] for node in nodes)
    if args.json:
        print(json.dumps({"ok": all_ok, "nodes": nodes}))
    else:
        for node in nodes:
            print(f"{'ok  ' if node['ok'] else 'FAIL'}  {node['id']}  {node['why']}".rstrip())
    return 0 if all_ok else 1
