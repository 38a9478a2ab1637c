"""`emo cloud`, `emo rounds`, `emo export`."""

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from emo import files
from emo.config import CloudConfig
from emo.config_file import load
from emo.errors import ConfigError, ExportError
from emo.extras import needs
from emo.logs import printable
from emo.parser import GRACEFUL, Commands
from emo.runtime import heartbeat

_FRESH_S, _LOOK_S = 30.0, 0.25


def register(commands: Commands) -> None:
    cloud = commands.add("cloud", _cloud, "run the cloud", "cloud", GRACEFUL)
    cloud.add_argument("--config", type=Path, required=True, metavar="FILE", help="the cloud's own")
    cloud.add_argument("--json", action="store_true", help="print the result as one JSON line")
    cloud.add_argument(
        "--new-run", action="store_true", help="give up a run that was interrupted; else it goes on"
    )

    rounds = commands.add("rounds", _rounds, "look at the cloud's rounds; hold them, and let them go on")
    rounds.add_argument("do", choices=["status", "pause", "resume"], help="look, hold, or let go on")
    rounds.add_argument("--config", type=Path, required=True, metavar="FILE", help="the cloud's own")
    rounds.add_argument("--wait", action="store_true", help="pause: until no round is under way")
    rounds.add_argument(
        "--timeout", type=float, default=3600.0, metavar="S", help="seconds that --wait waits at most"
    )
    rounds.add_argument("--json", action="store_true", help="print where they are as one JSON object")

    text = "make a served model of a run: of emo cloud's state_dir, or a simulated one"
    export = commands.add("export", _export, text, "cloud")
    export.add_argument(
        "--run",
        dest="folder",
        type=Path,
        required=True,
        metavar="DIR",
        help="a cloud's state_dir, or a simulation's --out",
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="model repository")
    export.add_argument("--name", default="emo", help="the model's name there; it gets a new version")
    export.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where the data lies (default: where the run had it)"
    )
    export.add_argument(
        "--combine",
        choices=["probabilities", "logits"],
        help="what is averaged (default: what the run was configured with)",
    )
    export.add_argument("--head", action="store_true", help="the FL model's own head is a member too")
    fits = ["none", "weights", "members", "both"]
    export.add_argument("--fit", choices=fits, default="none", help="what held-out data decides")
    export.add_argument(
        "--without", nargs="+", default=[], metavar="EDGE", help="leave these overlays out (default: none)"
    )
    export.add_argument("--opset", type=int, choices=range(18, 25), default=20, help="of ONNX")
    text = "an ensemble that is less accurate than the FL model alone is not exported: that is (none: it is)"
    export.add_argument("--at-least", choices=["head", "none"], default="head", help=text)
    export.add_argument("--yes", action="store_true", help="also if it is less accurate than what is served")
    export.add_argument("--int8", action="store_true", help="quantise, if faster and about as accurate")
    export.add_argument("--json", action="store_true", help="print the result as one JSON line")


def _cloud(args: argparse.Namespace, stop: threading.Event) -> int:
    settings = load(CloudConfig, args.config)
    with needs("cloud"):
        from cloud_app.run import run
    result = run(settings, stop, args.new_run)
    if result is not None and args.json:
        print(json.dumps(result))
    return 0 if result is not None else 130


def _rounds(args: argparse.Namespace, stop: threading.Event) -> int:
    folder = load(CloudConfig, args.config).state_dir
    mark = folder / heartbeat.PAUSE
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


def _standing(beat: heartbeat.Heartbeat | None, paused: bool) -> dict[str, Any]:
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


def _export(args: argparse.Namespace, _stop: threading.Event) -> int:
    with needs("cloud"):
        from cloud_app.ensemble.member_choice import Choice
        from cloud_app.ensemble.publish import from_folder
    without = tuple(args.without)
    choice = Choice(args.combine, args.head, args.fit, args.int8, without, args.opset, args.at_least)

    def sure(text: str) -> None:
        if args.yes:
            return
        if sys.stdin.isatty():
            print(f"{text}. Serve it? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() in {"y", "yes"}:
                return
        raise ExportError(f"{text}. Nothing was added; --yes adds it all the same")

    found = from_folder(args.folder, args.out, args.name, choice, args.data_dir, sure)
    accuracy = f"accuracy {found['accuracy']['served']:.2%}, members {', '.join(found['members'])}"
    print(json.dumps(found) if args.json else f"{found['onnx']}: {found['precision']}, {accuracy}")
    return 0
