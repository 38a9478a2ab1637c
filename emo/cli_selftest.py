"""The composition root's part for a device's self-test: `emo selftest`. Imports no torch: a process of its own does, so
that a processor on which torch dies is told what to pin."""

import argparse
import json
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emo.logs import printable

Add = Callable[[str, object, str], argparse.ArgumentParser]
_SECONDS = 600  # a board with a slow card, or one that is emulated
_DEADLY = {"SIGILL", "SIGBUS", "SIGSEGV"}


def commands(add: Add) -> None:
    """`add(name, run, help)` makes the parser of the command."""
    parser = add(
        "selftest",
        _selftest,
        "one training step of a device's model and one activation frame, there and back",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a device's: its model and codec (default: those of a configuration that names none)",
    )
    parser.add_argument("--json", action="store_true", help="print what was found as one JSON object")


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
