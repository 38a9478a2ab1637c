"""`emo chaos`: runs of a whole fleet under faults, seed after seed, each judged at its end.

A seed repeats its schedule: what goes wrong, when, where and for how long; not the processes' own timing.
"""

import argparse
import shutil
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from testbed import figures
from testbed.chaos import disk, verdict
from testbed.chaos.fleet import Fleet, Plan
from testbed.chaos.proxy import Proxy
from testbed.chaos.run import Run


def run(args: argparse.Namespace, stop: threading.Event) -> int:
    """0 when every invariant held, 1 when one did not, 130 when `stop` was set. Raises BrokerError without Mosquitto."""
    own = disk.may_mount()
    print("disks: " + ("a tmpfs for each tier" if own else "RLIMIT_FSIZE of each tier (no tmpfs without root)"))
    records = []
    for seed in range(args.seed, args.seed + args.seeds):
        # Every other seed allows stragglers to be left out; every third ends early, so that faults meet the export.
        rounds = args.rounds if seed % 3 else max(1, args.rounds // 3)
        over = args.over or (args.faults + args.hostile) / 2
        # A hostile device may be left out: a round that waited for all would wait for it.
        plan = Plan(seed, rounds, args.faults, over, seed % 2 == 0 and not args.hostile, hostile=args.hostile)
        record = one(plan, args, own, stop)
        records.append(record)
        figures.write(args.json, summary(records))
        if stop.is_set():
            return 130
    total = summary(records)
    print(f"{total['faults']} faults over {total['seeds']} seeds: {total['violations']} violations")
    return 1 if total["violations"] else 0


def one(plan: Plan, args: argparse.Namespace, own_disks: bool, stop: threading.Event) -> dict[str, Any]:
    """One run and what came of it, as JSON has it. What it wrote stays in --out where it broke a rule, or with --keep."""
    with tempfile.TemporaryDirectory(prefix="emo-chaos-", ignore_cleanup_errors=True) as folder:
        return _one(plan, args, Path(folder), own_disks, stop)


def _one(plan: Plan, args: argparse.Namespace, folder: Path, own_disks: bool, stop: threading.Event) -> dict[str, Any]:
    began = time.monotonic()
    kept = None if args.out is None else args.out.resolve() / f"seed-{plan.seed}"
    kind = "nobody may be left out" if plan.strict else "stragglers may be left out"
    beside = f" and {plan.hostile} hostile acts" if plan.hostile else ""
    print(f"seed {plan.seed}: {plan.faults} faults{beside} in {plan.over_s:.0f} s, {plan.rounds} rounds, {kind}")
    with Proxy() as proxy:
        fleet = Fleet(plan, folder, proxy, own_disks)
        current = Run(fleet, plan, stop, lambda text: print(f"  {text}", flush=True))
        seen = current.run()
    wrong = [] if stop.is_set() else verdict.check(fleet, plan, seen, current.hostile)
    record = {
        "seed": plan.seed,
        "strict": plan.strict,
        "rounds": plan.rounds,
        "faults": sum(seen.injected.values()),
        "planned": len(current.faults) + len(current.acts),
        "kinds": dict(sorted(seen.injected.items())),
        "starts": {name: process.starts for name, process in fleet.processes().items()},
        "exits": [{"process": name, "status": status, "full": full} for name, status, full in seen.exits],
        "rounds_under_faults": seen.during,
        "run_s": seen.seconds,
        "peak_mib": seen.peaks,
        "seconds": round(time.monotonic() - began, 1),
        "violations": [violation._asdict() for violation in wrong],
    }
    if kept is not None and (args.keep or wrong):
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept, symlinks=True)
    verdict_text = "interrupted, not judged" if stop.is_set() else "BROKEN" if wrong else "HOLDS"
    print(f"seed {plan.seed}: {record['faults']} faults, {record['seconds']} s: {verdict_text}")
    for violation in wrong[:20]:
        print(f"  {violation.invariant}: {violation.text}")
    if wrong:
        again = f"--seed {plan.seed} --faults {args.faults} --rounds {args.rounds} --over {plan.over_s:g}"
        again += f" --hostile {args.hostile}" * (args.hostile > 0)
        print(f"  to repeat: emo chaos {again}; its logs: {kept or 'say --out DIR to keep them'}", flush=True)
    return record


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = Counter[str]()
    for record in records:
        kinds.update(record["kinds"])
    return {
        "seeds": len(records),
        "faults": sum(record["faults"] for record in records),
        "kinds": dict(sorted(kinds.items())),
        "violations": sum(len(record["violations"]) for record in records),
        "runs": records,
    }
