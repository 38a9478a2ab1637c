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
    check = commands.add("check", _check, text)
    text = "every node's configuration; - for standard input: one after each line of ---"
    check.add_argument("files", type=Path, nargs="+", metavar="FILE", help=text)
    text = "the cloud and each edge have a broker of their own, as `emo broker` makes them"
    check.add_argument("--own-brokers", action="store_true", help=text)
    check.add_argument("--json", action="store_true", help="print {ok, nodes, wrong}")

    text = "check this machine, a configuration and its brokers; say what to do"
    doctor = commands.add("doctor", _doctor, text)
    doctor.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a node's configuration, and what it needs (default: this machine only)",
    )
    doctor.add_argument("--json", action="store_true", help="print the checks as one JSON object")

    health = commands.add("health", _health, "is the node of a configuration alive? 0: yes, 1: no")
    health.add_argument(
        "--config", type=Path, nargs="+", required=True, metavar="FILE", help="one file a node"
    )
    health.add_argument(
        "--max-age",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds since its last sign of life, at most",
    )
    health.add_argument("--connected", action="store_true", help="its brokers must be there too")
    health.add_argument("--json", action="store_true", help="print the nodes as one JSON object")


def _init(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo.ops import example_configs

    example_configs.init(args.folder)
    return 0


def _check(args: argparse.Namespace, _stop: threading.Event) -> int:
    from emo.ops import fleet_check

    nodes, wrong = fleet_check.read(args.files)
    wrong = wrong or list(
        fleet_check.wrong(nodes, args.own_brokers)
    )  # of a node that is not read others seem wrong
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
        wrong = f"{config.state_dir}: no heartbeat: it was never started" if beat is None else ""
        if beat is not None:
            wrong = beat.wrong(args.max_age, args.connected)
        said = {} if beat is None else beat.model_dump(include={"tier", "turned_s", "brokers", "about"})
        age = None if beat is None or beat.age_s() == float("inf") else round(beat.age_s(), 1)
        nodes.append({"id": config.id, "ok": not wrong, "why": wrong, "age_s": age, **said})
    good = all(node["ok"] for node in nodes)
    if args.json:
        print(json.dumps({"ok": good, "nodes": nodes}))
    else:
        for node in nodes:
            print(f"{'ok  ' if node['ok'] else 'FAIL'}  {node['id']}  {node['why']}".rstrip())
    return 0 if good else 1
