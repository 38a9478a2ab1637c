"""`emo device`, `emo selftest`. The self-test runs in a process of its own, so that a processor on which torch dies is
told what to pin."""

import argparse
import json
import platform
import signal
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
_DEADLY = {"SIGILL", "SIGBUS", "SIGSEGV"}


def register(commands: Commands) -> None:
    text = "run one device, or several in one process"
    device = commands.add("device", _device, text, "device", GRACEFUL)
    device.add_argument(
        "--config", type=Path, nargs="+", required=True, metavar="FILE", help="one file a device"
    )
    device.add_argument("--parallel", type=int, default=1, help="devices of this process that train at once")

    text = "one training step of a device's model and one activation frame, there and back"
    selftest = commands.add("selftest", _selftest, text, "device")
    selftest.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a device's: its model and codec (default: those of a configuration that names none)",
    )
    selftest.add_argument("--json", action="store_true", help="print what was found as one JSON object")


def _device(args: argparse.Namespace, stop: threading.Event) -> int:
    configs = [load(DeviceConfig, path) for path in args.config]
    with needs("device"):
        from device_app.run import run
    run(configs, stop, args.parallel)
    return 0


def _selftest(args: argparse.Namespace, _stop: threading.Event) -> int:
    found = run([] if args.config is None else [str(args.config)])
    if args.json:
        print(json.dumps(found))
    elif found["ok"]:
        print(
            f"ok: torch {found['torch']} on {found['machine']} trained a step of {found['model']} (loss "
            f"{found['loss']:.3f}); {found['raw_bytes']:,} bytes of activations went as {found['bytes']:,} in "
            f"{found['frames']} frames and came back ({found['codec']}, {found['seconds']} s)"
        )
    else:
        print(f"FAIL: {printable(found['error'])}", file=sys.stderr)
    return int(not found["ok"])


def run(arguments: list[str]) -> dict[str, Any]:
    """What `device_app.selftest` found; `ok` False and `error` also where its process died or hung."""
    command = [sys.executable, "-P", "-m", "device_app.selftest", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603 - this interpreter, our own module
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"ok": False, "error": f"the self-test did not end: {error}"}
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        pin = ": pin another torch; 2.9.1 is known to run on ARMv8.0, such as a Raspberry Pi 4"
        advice = pin if name in _DEADLY else ": out of memory? look at dmesg"
        return {
            "ok": False,
            "error": f"a training step ends with {name} on this {platform.machine()}{advice}",
        }
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return {"ok": False, "error": f"the self-test broke: {last}"}
    return found
