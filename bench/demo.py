"""What `emo demo` takes and gives, seed by seed: seconds, memory of all its processes together, accuracies.

    python -m bench.demo [--json FILE] [--seeds 3] [-- options of emo demo]

Memory is the sum of every process's proportional share (PSS; RSS where the system has none), sampled 5 times a
second, at its highest.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from testbed import figures


def main() -> None:
    parser = figures.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 0 on")
    args, options = parser.parse_known_args()
    runs = [_run(seed, [option for option in options if option != "--"]) for seed in range(args.seeds)]
    gains = [run["bagged"] - run["fl"] for run in runs]
    summary = {
        "gain_points": [round(100 * gain, 2) for gain in gains],
        "mean_gain_points": round(100 * sum(gains) / len(gains), 2),
        "seconds": max(run["seconds"] for run in runs),
        "peak_mib": max(run["peak_mib"] for run in runs),
    }
    figures.show(summary)
    figures.write(args.json, {"runs": runs, **summary})


def _run(seed: int, options: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        began = time.perf_counter()
        words = ["demo", "--seed", str(seed), "--json", str(out), "--out", folder, *options]
        process = psutil.Popen([sys.executable, "-m", "emo.cli", *words], stdout=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _memory(process))
            time.sleep(0.2)
        seconds = time.perf_counter() - began
        if process.returncode:
            sys.exit(f"emo demo ended with {process.returncode}")
        result = json.loads(out.read_text(encoding="utf-8"))
    accuracy = {name: result["accuracy"][name] for name in ("fl", "boosted", "bagged", "bagged_logits")}
    run = {"seed": seed, **accuracy, "seconds": round(seconds, 1), "peak_mib": round(peak / 2**20)}
    run |= {"bytes": result["bytes"], "sent_fraction": result["sent_fraction"], "broker": result["broker"]}
    figures.line(run)
    return run


def _memory(process: psutil.Process) -> int:
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            info = each.memory_full_info()
            total += getattr(info, "pss", 0) or info.rss
        except psutil.Error:  # it has ended meanwhile
            continue
    return total


if __name__ == "__main__":
    main()
