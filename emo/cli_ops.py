"""The composition root's part for operation: `emo health`, `emo rounds`. Imports no tier and no torch."""

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emo import files
from emo.config import CloudConfig
from emo.config_file import any_tier, load
from emo.errors import ConfigError
from emo.logs import printable
from emo.runtime import heartbeat
from emo.runtime.heartbeat import PAUSE, Beat

Add = Callable[[str, object, str], argparse.ArgumentParser]
_FRESH_S, _LOOK_S = 30.0, 0.25


def commands(add: Add) -> None:
    """`add(name, run, help)` makes the parser of one command."""
    health = add("health", _health, "is the node of a configuration alive? 0: yes, 1: no")
    health.add_argument(
        "--config", type=Path, nargs="+", required=True, metavar="FILE", help="one file a node"
    )
    health.add_argument(
        "--max-age",
        type=float,
        default=_FRESH_S,
        metavar="S",
        help="seconds since its last sign of life, at most",
    )
    health.add_argument("--connected", action="store_true", help="its brokers must be there too")
    health.add_argument("--json", action="store_true", help="print the nodes as one JSON object")

    rounds = add("rounds", _rounds, "look at the cloud's rounds; hold them, and let them go on")
    rounds.add_argument("do", choices=["status", "pause", "resume"], help="look, hold, or let go on")
    rounds.add_argument("--config", type=Path, required=True, metavar="FILE", help="the cloud's own")
    rounds.add_argument("--wait", action="store_true", help="pause: until no round is under way")
    rounds.add_argument(
        "--timeout", type=float, default=3600.0, metavar="S", help="seconds that --wait waits at most"
    )
    rounds.add_argument("--json", action="store_true", help="print where they are as one JSON object")


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


def _rounds(args: argparse.Namespace, stop: threading.Event) -> int:
    folder = load(CloudConfig, args.config).state_dir
    mark = folder / PAUSE
    try:
        if args.do == "pause":
            files.make_folder(folder)
            mark.touch(mode=0o600)
        elif args.do == "resume":
            mark.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{mark}: {error.strerror}; run this as the cloud's user") from error
    until = time.monotonic() + args.timeout
    found = _standing(heartbeat.read(folder), paused=mark.exists())
    while args.do == "pause" and args.wait and not found["idle"] and time.monotonic() < until:
        if stop.wait(_LOOK_S):
            return 130
        found = _standing(heartbeat.read(folder), paused=mark.exists())
    print(json.dumps(found) if args.json else _text(found))
    if args.do == "status":
        return 0 if found["running"] else 1
    return 1 if args.do == "pause" and args.wait and not found["idle"] else 0


def _standing(beat: Beat | None, paused: bool) -> dict[str, Any]:
    """What `emo rounds` says of a cloud whose last heartbeat is `beat`."""
    running = beat is not None and not beat.wrong(_FRESH_S)
    about = {} if beat is None else beat.about
    keys = ("run", "round", "of", "phase", "devices", "sampled", "updates", "out")
    found = {name: about.get(name) for name in keys}
    return {"running": running, "paused": paused, "idle": not running or bool(about.get("idle")), **found}


def _text(found: dict[str, Any]) -> str:
    held = "paused, " if found["paused"] else ""
    if not found["running"]:
        last = f"; it was in round {found['round']} of {found['of']}" if found["round"] else ""
        return f"{held}the cloud is not running{last}"
    where = f"{held}run {found['run']}, round {found['round']} of {found['of']}: {found['phase']}"
    asked = f", {found['updates']} of {found['sampled']} updates" if found["sampled"] else ""
    out = "".join(f"\n{node} takes no part: {printable(why)}" for node, why in (found["out"] or {}).items())
    return f"{where}{asked}, {found['devices']} devices here{out}"
