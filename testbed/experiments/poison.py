"""What one hostile device does to the ensemble through its activations: accuracy by attack. It is honest in FL.

    python -m testbed.experiments.poison --json FILE
    python -m testbed.experiments.poison --norm batch --attacks none scale

Federated learning is recorded once a seed (trace.py); devices' offers, frames, edges and caches are the fleet's own (arm.py).

    label-flip   the last class for the first, ...
    flood        the same, and 500 more batch ids that take turns, three for one
    scale        activations x 1e6
    huge         activations of 3e38
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emo.config import Data, Model, Overlay
from emo.data import registry
from emo.parser import Parser
from testbed.experiments import arm as arms
from testbed.experiments import trace
from testbed.experiments.command import command

ATTACKS = ("none", "label-flip", "flood", "scale", "huge")
_MORE = 500  # batch ids
_FIRST = 1000  # of them


class Poisoned(arms.Study):
    """A study in which device `hostile` attacks."""

    attack, hostile = "none", -1

    def _offer(
        self, device: int, batch: int, version: int, activations: np.ndarray, labels: np.ndarray
    ) -> None:
        if device != self.hostile:
            super()._offer(device, batch, version, activations, labels)
            return
        for number, values, said in self._instead(batch, version, activations, labels):
            super()._offer(device, number, version, values, said)

    def _instead(
        self, batch: int, version: int, activations: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        turned = (self._spec.classes - 1 - labels).astype(labels.dtype)
        if self.attack == "flood":
            for more in range(3):
                yield _FIRST + (version * 37 + batch * 3 + more) % _MORE, activations, turned
        if self.attack == "scale":
            activations = activations * np.float32(1e6)
        if self.attack == "huge":
            activations = np.full_like(activations, 3e38)
        yield batch, activations, turned if self.attack in ("label-flip", "flood") else labels


def run(options: trace.Options, folder: Path, rounds: int, attack: str, sampling: str) -> dict[str, Any]:
    """The figures of arm.Study.result after the last round, and what the edges counted. Raises EmoError."""
    trace.record(folder, options, rounds, lambda _: None)
    arm = arms.Arm("svcca", "int2-delta", round(0.4 * options.devices), Overlay(), sampling=sampling)
    with tempfile.TemporaryDirectory(prefix="emo-poison-") as scratch:
        study = Poisoned(arm, options, folder, rounds, Path(scratch))
        if attack != "none":
            study.attack, study.hostile = attack, (3 * options.seed + 1) % options.devices
        try:
            for number in range(1, rounds + 1):
                recorded = study.round(number)
            names = ("overlay.steps", "overlay.refused", "overlay.left_out", "overlay.set_aside")
            counts = {name: study.journal.counts[name] for name in names}
            return {**study.result(recorded, options.load()[1]), "counts": counts}
        finally:
            study.close()


@command("poison")
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--dataset", default="digits", help="digits, cifar10, cifar100 or folder")
    add("--data-dir", help="where it lies (default: none, as digits needs)")
    add("--model", default="cnn", help="a network of emo.models.split_network")
    add("--norm", default="group", choices=["group", "batch", "none"], help="of the network")
    add("--width", type=float, default=1.0, help="multiplier of the network")
    add("--devices", type=int, default=10, help="of which one is hostile")
    add("--rounds", type=int, default=12, help="of FL")
    add("--lr", type=float, default=0.05, help="the devices' learning rate")
    add("--alpha", type=float, default=1.0, help="of Dirichlet(alpha x prior): smaller is less alike")
    add(
        "--sampling",
        default="mixed",
        choices=["mixed", "uniform", "importance", "fresh"],
        help="of the cache",
    )
    add("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="to try")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of each attack")
    add("--work", type=Path, help="keep the recordings here, for the next call (default: nowhere)")
    add("--json", type=Path, metavar="FILE", help="write the rows to FILE (default: no file)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger("emo").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="emo-poison-") as work:
        rows = _rows(args, args.work or Path(work))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _rows(args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """A row an attack, printed as soon as it is known."""
    train, _ = registry.load(Data(name=args.dataset, dir=args.data_dir))
    model = Model(
        name=args.model,
        width=args.width,
        norm=args.norm,
        input=train.images.shape[1:],
        classes=len(train.classes),
    )
    print("| attack | ensemble | FL alone | ensemble, each seed | left out | set aside | refused steps |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for attack in args.attacks:
        found = []
        for seed in args.seeds:
            options = trace.Options(
                args.dataset,
                args.data_dir,
                model,
                devices=args.devices,
                per_round=args.devices,
                alpha=args.alpha,
                lr=args.lr,
                seed=seed,
            )
            folder = work / f"{args.norm}-{args.alpha:g}-{seed}"
            found.append(run(options, folder, args.rounds, attack, args.sampling))
        bagged, fl = ([each[name] for each in found] for name in ("accuracy_bagged", "accuracy_fl"))
        counts = {name: sum(each["counts"][name] for each in found) for name in found[0]["counts"]}
        rows.append({"attack": attack, "bagged": bagged, "fl": fl, "counts": counts})
        print(
            f"| {attack} | {statistics.fmean(bagged):.2f} | {statistics.fmean(fl):.2f} "
            f"| {', '.join(f'{each:.1f}' for each in bagged)} | {counts['overlay.left_out']} "
            f"| {counts['overlay.set_aside']} | {counts['overlay.refused']} |",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
