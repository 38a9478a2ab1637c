"""How few bytes carry the overlays: accuracy against traffic, for policies of the controller and codecs.

    python -m testbed.experiments.intervals --dataset cifar10 --data-dir DIR --width 0.25 --rounds 60 --json FILE

Each seed's federated run is recorded once (it is the same with any policy), then every arm `POLICY[@CAP][+FRESH]:CODEC`
(cap of an interval in attempts; last rounds that send everything) replays it through the nodes and frames of a fleet.
`--work DIR` keeps recordings and rows for the next call. `reduction` counts what split federated learning would send
for the same batches (activations up and gradients down, raw float32 without framing) over everything that the LAN
carried here: frames and topics of activations, intervals and reports.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError

from emo.codec import CODECS, Codec
from emo.config import Controller, Model, Overlay, Overlays
from emo.errors import ConfigError, EmoError
from testbed.experiments import arm as arms
from testbed.experiments import trace
from testbed.experiments.plot import frontier

ARMS = ("always:fp32", "svcca:int4-delta", "fixed(3):int3-delta", "fixed(1):int2-delta")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", help="where the dataset lies; digits needs none")
    parser.add_argument("--model", default="vgg6")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--per-round", type=int, default=20)
    parser.add_argument(
        "--alpha", type=float, default=5.0, help="Dirichlet, as Hsu's; 5 is Dir(0.5) for 10 classes"
    )
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--replay-ratio", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="*", default=list(ARMS), metavar="POLICY[@CAP][+FRESH]:CODEC")
    parser.add_argument("--every", type=int, default=10, help="rounds between two measurements")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument(
        "--work",
        type=Path,
        help="keep recordings and rows here, for the next call: 2.5 GB a seed with the defaults",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every row to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="accuracy over bytes, as .svg or .png")
    args = parser.parse_args(argv)
    try:
        if args.work is not None:
            rows = _study(args, args.work)
        else:
            with tempfile.TemporaryDirectory(prefix="emo-intervals-") as work:
                rows = _study(args, Path(work))
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
        _table([row for row in rows if row["round"] == args.rounds])
        if args.plot:
            frontier([row for row in rows if row["round"] == args.rounds], args.plot)
    except EmoError as error:
        print(f"intervals: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _study(args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    chosen = [_arm(name, args) for name in args.arms]
    plans = [(_options(args, seed), work / f"seed-{seed}") for seed in args.seeds]
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(args.workers, get_context("spawn"), _stay_with, (os.getpid(),)) as pool:
        try:
            for done in as_completed([pool.submit(_record, folder, o, args.rounds) for o, folder in plans]):
                done.result()
            jobs = [
                pool.submit(arms.run, arm, options, folder, args.rounds, args.every, _say)
                for options, folder in plans
                for arm in chosen
            ]
            for job in as_completed(jobs):
                rows += job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(rows, key=lambda row: (arms.title(row), row["codec"], row["seed"], row["round"]))


def _options(args: argparse.Namespace, seed: int) -> trace.Options:
    bare = trace.Options(args.dataset, args.data_dir, Model(name=args.model))
    training, _ = bare.load()
    spec = Model(
        name=args.model, width=args.width, input=training.images.shape[1:], classes=len(training.classes)
    )
    return trace.Options(
        args.dataset,
        args.data_dir,
        spec,
        devices=args.devices,
        per_round=args.per_round,
        alpha=args.alpha,
        lr=args.lr,
        seed=seed,
    )


def _arm(name: str, args: argparse.Namespace) -> arms.Arm:
    text, _, codec = name.rpartition(":")
    text, _, fresh = text.partition("+")
    policy, _, cap = text.partition("@")
    if codec not in CODECS:
        raise ConfigError(f"--arms {name}: the codec must be one of {', '.join(CODECS)}")
    overlay = Overlay(replay_ratio=args.replay_ratio)
    try:
        limit = Controller.model_validate({"policy": policy, "max_interval": cap or 64.0}).max_interval
        rounds = Overlays.model_validate({"fresh_rounds": fresh or 0}).fresh_rounds
    except ValidationError as error:
        raise ConfigError(f"--arms {name}: {error.errors()[0]['msg']}") from error
    return arms.Arm(policy, cast("Codec", codec), round(0.4 * args.devices), overlay, limit, rounds)


def _stay_with(parent: int) -> None:
    """In a worker: end when the one who asked is gone, also by kill -9."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _record(folder: Path, options: trace.Options, rounds: int) -> None:
    torch.set_num_threads(1)
    trace.record(folder, options, rounds, _say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _table(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'policy':12} {'codec':12} {'seeds':>5} {'sent %':>7} {'reduction':>9} {'bagged %':>15} {'FL %':>6}"
    )
    for policy, codec in dict.fromkeys((arms.title(row), row["codec"]) for row in rows):
        mine = [row for row in rows if (arms.title(row), row["codec"]) == (policy, codec)]

        def mean(key: str, mine: list[dict[str, Any]] = mine) -> float:
            return statistics.fmean(row[key] for row in mine)

        spread = statistics.stdev([row["accuracy_bagged"] for row in mine]) if len(mine) > 1 else 0.0
        print(
            f"{policy:12} {codec:12} {len(mine):5} {100 * mean('sent_fraction'):7.1f} {mean('reduction'):8.1f}x "
            f"{mean('accuracy_bagged'):8.2f} ± {spread:4.2f} {mean('accuracy_fl'):6.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
