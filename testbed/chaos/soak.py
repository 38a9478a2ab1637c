"""`emo chaos --soak MINUTES`: a fleet that is left alone, round after round: does any process grow?

A straight line is laid through
what each process held after a quarter of the time: before that, caches and allocators fill. What it held is anonymous
memory, as /proc has it; pages of libraries and files come and go with what else the machine does.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from emo.errors import EmoError
from testbed import figures
from testbed.chaos.fleet import Fleet, Plan
from testbed.chaos.process import Process
from testbed.chaos.proxy import Proxy

_EVERY_S = 5.0
_SAY_S = 60.0
_WARM_UP = 0.25  # of the time
_ROUNDS = 1_000_000  # more than there is time for
_DEVICES = 10


def run(args: argparse.Namespace, stop: threading.Event) -> int:
    """0 when every process was there to the end, 130 when `stop` was set. Raises EmoError when one has ended."""
    plan = Plan(args.seed, _ROUNDS, 0, 0.0, strict=False, devices=_DEVICES)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="emo-soak-") as folder, Proxy() as proxy:
        fleet = Fleet(plan, Path(folder), proxy, own_disks=False)
        processes = fleet.processes()
        held: dict[str, list[tuple[float, int, int]]] = {name: [] for name in processes}
        try:
            for process in processes.values():
                process.start()
            said = 0.0
            while (now := time.monotonic() - began) < 60 * args.soak and not stop.wait(_EVERY_S):
                for name, process in processes.items():
                    held[name].append((now, *_held(process)))
                if now - said > _SAY_S:
                    said = now
                    memory = ", ".join(f"{name} {rows[-1][1] >> 20} MiB" for name, rows in held.items())
                    print(f"{now / 60:5.1f} min  {fleet.rounds()} rounds; {memory}", flush=True)
            report = {
                "minutes": round((time.monotonic() - began) / 60, 1),
                "rounds": fleet.rounds(),
                "devices": _DEVICES,
                "processes": {name: slope(rows) for name, rows in held.items()},
            }
        finally:
            for process in reversed(list(processes.values())):
                process.stop(20)
    print(json.dumps(report))
    figures.write(args.json, report)
    return 130 if stop.is_set() else 0


def slope(rows: list[tuple[float, int, int]]) -> dict[str, Any]:
    """`rows`: (seconds, bytes of anonymous memory, open files), in order of time. Memory in MiB; `percent_an_hour`: how much of
    what it held after the warm-up a process would gain in an hour, by least squares."""
    rows = [row for row in rows if row[0] >= _WARM_UP * rows[-1][0]]
    seconds, memory, files = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    line = np.polyfit(seconds, memory, 1)[0] if len(rows) > 1 else 0.0
    return {
        "mib": round(float(memory[0]) / 2**20, 2),
        "mib_at_end": round(float(memory[-1]) / 2**20, 2),
        "percent_an_hour": round(100 * 3600 * float(line) / float(memory[0]), 2),
        "files": [int(files.min()), int(files.max())],
    }


def _held(process: Process) -> tuple[int, int]:
    try:
        running = psutil.Process(process.pid)
        memory = running.memory_info()
        return memory.rss - getattr(memory, "shared", 0), running.num_fds()  # Linux says how much is of files
    except psutil.Error as error:
        text = process.log.read_text(encoding="utf-8", errors="replace")[-1000:]
        raise EmoError(f"{process.name} has ended with {process.status()}: {text}") from error
