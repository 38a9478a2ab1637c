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
import logging
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emo.config import Overlay
from testbed import figures
from testbed.experiments import arm as arms
from testbed.experiments import study, trace

ATTACKS = ("none", "label-flip", "flood", "scale", "huge")
_MORE = 500  # batch ids
_FIRST = 1000  # of them


class Poisoned(arms.Study):
    """A study in which device `hostile` attacks."""

    attack, hostile = "none", -1

    def _offer(self, device: int, batch: int, version: int, activations: np.ndarray, labels: np.ndarray) -> None:
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
    with (
        tempfile.TemporaryDirectory(prefix="emo-poison-") as scratch,
        closing(Poisoned(arm, options, folder, rounds, Path(scratch))) as poisoned,
    ):
        if attack != "none":
            poisoned.attack, poisoned.hostile = attack, (3 * options.seed + 1) % options.devices
        for number in range(1, rounds + 1):
            recorded = poisoned.round(number)
        names = ("overlay.steps", "overlay.refused", "overlay.left_out", "overlay.set_aside")
        counts = {name: poisoned.journal.counts[name] for name in names}
        return {**poisoned.result(recorded, options.load()[1]), "counts": counts}


@figures.command("poison")
def main(argv: Sequence[str] | None = None) -> int:
    parser = figures.parser(
        __doc__,
        dataset="digits",
        data_dir=None,
        model="cnn",
        norm="group",
        width=1.0,
        devices=10,
        rounds=12,
        lr=0.05,
        alpha=1.0,
        seeds=[0, 1, 2, 3, 4],
    )
    option, samplings = parser.add_argument, ["mixed", "uniform", "importance", "fresh"]
    option("--sampling", default="mixed", choices=samplings, help="of the cache")
    option("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="to try, by one device")
    option("--work", type=Path, help="keep the recordings here, for the next call (default: nowhere)")
    args = parser.parse_args(argv)
    args.per_round = args.devices
    torch.set_num_threads(1)
    logging.getLogger("emo").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="emo-poison-") as work:
        figures.write(args.json, _rows(args, args.work or Path(work)))
    return 0


def _rows(args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """A row an attack, printed as soon as it is known."""
    columns = ("ensemble", "FL alone", "ensemble, each seed", "left out", "set aside", "refused steps")
    figures.heads("attack", *columns)
    rows = []
    for attack in args.attacks:
        runs = []
        for seed in args.seeds:
            folder = work / f"{args.norm}-{args.alpha:g}-{seed}"
            runs.append(run(study.options(args, seed), folder, args.rounds, attack, args.sampling))
        bagged, fl = ([row[name] for row in runs] for name in ("accuracy_bagged", "accuracy_fl"))
        counts = {name: sum(row["counts"][name] for row in runs) for name in runs[0]["counts"]}
        rows.append({"attack": attack, "bagged": bagged, "fl": fl, "counts": counts})
        shown = [counts[f"overlay.{name}"] for name in ("left_out", "set_aside", "refused")]
        seeds = ", ".join(f"{accuracy:.1f}" for accuracy in bagged)
        means = [f"{statistics.fmean(accuracies):.2f}" for accuracies in (bagged, fl)]
        figures.markdown(attack, *means, seeds, *shown)
    return rows


if __name__ == "__main__":
    sys.exit(main())
