"""`emo device`, `emo selftest`."""

import argparse
import json
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from emo.config import DeviceConfig
from emo.config_file import load
from emo.extras import needs
from emo.logs import printable
from emo.parser import GRACEFUL, Commands

_SECONDS = 600  # a board with a slow card, or one that is emulated


def register(commands: Commands) -> None:
    text = "run one device, or several in one process"
    option = commands.add("device", _device, text, "device", GRACEFUL).add_argument
    option("--config", type=Path, nargs="+", required=True, metavar="FILE", help="one file a device")
    option("--parallel", type=int, default=1, help="devices of this process that train at once")

    text = "one training step of a device's model and one activation frame, there and back"
    option = commands.add("selftest", _selftest, text, "device").add_argument
    option(
        "--config",
        type=Path,
        metavar="FILE",
        help="a device's: its model and codec (default: those of a configuration that names none)",
    )
    option("--json", action="store_true", help="print what was found as one JSON object")


def _device(args: argparse.Namespace, stop: threading.Event) -> int:
    configs = [load(DeviceConfig, path) for path in args.config]
    with needs("device"):
        from device_app.run import run
    run(configs, stop, args.parallel)
    return 0


def _selftest(args: argparse.Namespace, _stop: threading.Event) -> int:
    result = run([] if args.config is None else [str(args.config)])
    if args.json:
        print(json.dumps(result))
    elif result["ok"]:
        print(
            f"ok: torch {result['torch']} on {result['machine']} trained a step of {result['model']} (loss "
            f"{result['loss']:.3f}); {result['raw_bytes']:,} bytes of activations went as {result['bytes']:,} in "
            f"{result['frames']} frames and came back ({result['codec']}, {result['seconds']} s)"
        )
    else:
        print(f"FAIL: {printable(result['error'])}", file=sys.stderr)
    return int(not result["ok"])


def run(arguments: list[str]) -> dict[str, Any]:
    """The result of `device_app.selftest`; `ok` is False and `error` says why also where its process died or hung."""
    from emo.ops import trial

    try:
        ended = trial.run(["-m", "device_app.selftest", *arguments], _SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"ok": False, "error": f"the self-test did not end: {error}"}
    if ended.signal:
        pin = "pin another torch; 2.9.1 is known to run on ARMv8.0, such as a Raspberry Pi 4"
        advice = pin if ended.lacks_instruction else "out of memory? look at dmesg"
        why = f"a training step ends with {ended.signal} on this {platform.machine()}: {advice}"
        return {"ok": False, "error": why}
    try:
        result: dict[str, Any] = json.loads(ended.stdout)
    except ValueError:
        return {"ok": False, "error": f"the self-test broke: {ended.last or 'no word'}"}
    return result
