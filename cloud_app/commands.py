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
    option = commands.add("cloud", _cloud, "run the cloud", "cloud", GRACEFUL).add_argument
    option("--config", type=Path, required=True, metavar="FILE", help="the cloud's own")
    option("--json", action="store_true", help="print the result as one JSON line")
    option("--new-run", action="store_true", help="give up a run that was interrupted; else it goes on")

    text = "look at the cloud's rounds; hold them, and let them go on"
    option = commands.add("rounds", _rounds, text).add_argument
    option("do", choices=["status", "pause", "resume"], help="look, hold, or let go on")
    option("--config", type=Path, required=True, metavar="FILE", help="the cloud's own")
    option("--wait", action="store_true", help="pause: until no round is under way")
    option("--timeout", type=float, default=3600.0, metavar="S", help="seconds that --wait waits at most")
    option("--json", action="store_true", help="print where they are as one JSON object")

    text = "make a served model of a run: of emo cloud's state_dir, or a simulated one"
    option = commands.add("export", _export, text, "cloud").add_argument
    option(
        "--run",
        dest="folder",
        type=Path,
        required=True,
        metavar="DIR",
        help="a cloud's state_dir, or a simulation's --out",
    )
    option("--out", type=Path, required=True, metavar="DIR", help="model repository")
    option("--name", default="emo", help="the model's name there; it gets a new version")
    option("--data-dir", type=Path, metavar="DIR", help="where the data lies (default: where the run had it)")
    option(
        "--combine",
        choices=["probabilities", "logits"],
        help="what is averaged (default: what the run was configured with)",
    )
    option("--head", action="store_true", help="the FL model's own head is a member too")
    fits = ["none", "weights", "members", "both"]
    option("--fit", choices=fits, default="none", help="what held-out data decides")
    option("--without", nargs="+", default=[], metavar="EDGE", help="leave these overlays out (default: none)")
    option("--opset", type=int, choices=range(18, 25), default=20, help="of ONNX")
    text = "an ensemble that is less accurate than the FL model alone is not exported: that is (none: it is)"
    option("--at-least", choices=["head", "none"], default="head", help=text)
    text = "leave out of the file what each member answers for itself, and with it the FL model's head where that is no member"
    option("--no-answers", action="store_true", help=text)
    option("--yes", action="store_true", help="also if it is less accurate than what is served")
    option("--int8", action="store_true", help="quantise, if faster and about as accurate")
    option("--json", action="store_true", help="print the result as one JSON line")


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
    waits = args.do == "pause" and args.wait
    status = _status(heartbeat.read(folder), paused=mark.exists())
    while waits and not status["idle"] and time.monotonic() < until:
        if stop.wait(_LOOK_S):
            return 130
        status = _status(heartbeat.read(folder), paused=mark.exists())
    print(json.dumps(status) if args.json else _text(status))
    if args.do == "status":
        return 0 if status["running"] else 1
    return 1 if waits and not status["idle"] else 0


def _status(beat: heartbeat.Heartbeat | None, paused: bool) -> dict[str, Any]:
    """What `emo rounds` prints of a cloud whose last heartbeat is `beat`."""
    running = beat is not None and not beat.wrong(_FRESH_S)
    about = {} if beat is None else beat.about
    keys = ("run", "round", "of", "phase", "devices", "sampled", "updates", "out")
    idle = not running or bool(about.get("idle"))
    return {"running": running, "paused": paused, "idle": idle, **{key: about.get(key) for key in keys}}


def _text(status: dict[str, Any]) -> str:
    paused = "paused, " if status["paused"] else ""
    if not status["running"]:
        last = f"; it was in round {status['round']} of {status['of']}" if status["round"] else ""
        return f"{paused}the cloud is not running{last}"
    where = f"{paused}run {status['run']}, round {status['round']} of {status['of']}: {status['phase']}"
    updates = f", {status['updates']} of {status['sampled']} updates" if status["sampled"] else ""
    out = "".join(f"\n{node} takes no part: {printable(why)}" for node, why in (status["out"] or {}).items())
    return f"{where}{updates}, {status['devices']} devices here{out}"


def _export(args: argparse.Namespace, _stop: threading.Event) -> int:
    with needs("cloud"):
        from cloud_app.ensemble.member_choice import Choice
        from cloud_app.ensemble.publish import from_folder
    without = tuple(args.without)
    rest = without, args.opset, args.at_least, not args.no_answers
    choice = Choice(args.combine, args.head, args.fit, args.int8, *rest)

    def confirm(text: str) -> None:
        if args.yes:
            return
        if sys.stdin.isatty():
            print(f"{text}. Serve it? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() in {"y", "yes"}:
                return
        raise ExportError(f"{text}. Nothing was added; --yes adds it all the same")

    result = from_folder(args.folder, args.out, args.name, choice, args.data_dir, confirm)
    accuracy = f"accuracy {result['accuracy']['served']:.2%}, members {', '.join(result['members'])}"
    print(json.dumps(result) if args.json else f"{result['onnx']}: {result['precision']}, {accuracy}")
    return 0
