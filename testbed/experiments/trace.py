"""A federated run, recorded: the activations that every round offers, and the model that comes out of it.

The tap changes nothing in federated learning, so one recording serves every policy and every codec.

    DIR/options.json   what was recorded; another run's options make it another folder
    DIR/N.npz          round N: batches (K, 3) int64 [device, batch, samples] in order of training, activations
                       (samples, C, ...) float32, labels (samples,) int64, and the new global model as model.NAME
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cloud_app.aggregation import exact_mean
from device_app.tap import Tap
from emo.config import Data, Model, Partition, Training
from emo.data import registry
from emo.data.batches import FixedBatches
from emo.data.dataset import Dataset
from emo.data.partition import share
from emo.errors import DataError
from emo.local_sgd import train
from emo.models import split_network

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Options:
    """One federated run. `alpha` is Hsu's, of Dir(alpha x prior)."""

    dataset: str
    data_dir: str | None
    model: Model
    devices: int = 100
    per_round: int = 20
    batch_size: int = 16
    alpha: float = 5.0
    lr: float = 0.01
    seed: int = 0

    def load(self) -> tuple[Dataset, Dataset]:
        """Training and test set. Raises DataError."""
        folder = Path(self.data_dir) if self.data_dir else None
        return registry.load(Data(name=self.dataset, dir=folder, seed=self.seed))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "model": self.model.model_dump(mode="json")}


class Round(NamedTuple):
    batches: np.ndarray
    activations: np.ndarray
    labels: np.ndarray
    weights: Weights

    def offered(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """(device, batch, activations, labels), as they reach an edge whose devices train side by side."""
        ends = np.cumsum(self.batches[:, 2])
        place: dict[int, int] = {}
        order = []
        for row, (device, batch, samples) in enumerate(self.batches.tolist()):
            place[device] = place.get(device, -1) + 1
            order.append((place[device], device, batch, int(ends[row]) - samples, int(ends[row])))
        for _, device, batch, start, end in sorted(order):
            yield device, batch, self.activations[start:end], self.labels[start:end].astype(np.int32)


def read(folder: Path, number: int) -> Round:
    """Raises DataError when the round is not there."""
    try:
        with np.load(folder / f"{number}.npz", allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: round {number} is not recorded there: {error}") from error
    weights = {name[6:]: value for name, value in arrays.items() if name.startswith("model.")}
    return Round(arrays["batches"], arrays["activations"], arrays["labels"], weights)


def record(folder: Path, options: Options, rounds: int, say: Callable[[str], None] = print) -> None:
    """Rounds 1 to `rounds` into `folder`; goes on from the last one there. One thread, one seed: the same bits.

    Raises DataError where `folder` holds a run with other options.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "options.json"
    text = json.dumps(options.as_dict(), indent=1, sort_keys=True)
    if written.exists() and written.read_text() != text:
        raise DataError(f"{folder} holds a run with other options ({written}); name another folder")
    written.write_text(text)
    done = next(n for n in range(rounds, -1, -1) if n == 0 or (folder / f"{n}.npz").exists())
    if done == rounds:
        return
    training, _ = options.load()
    net = split_network.network(options.model, options.seed)
    weights: Weights = split_network.weights(net) if done == 0 else read(folder, done).weights
    shares = [_batches(training, options, index) for index in range(options.devices)]
    seen: list[tuple[int, np.ndarray, np.ndarray]] = []
    tap = Tap(net.trunk, lambda batch, a, labels: seen.append((batch, a.numpy().copy(), labels.numpy())))
    for number in range(done + 1, rounds + 1):
        total = exact_mean.init(weights)
        chosen = np.random.default_rng([options.seed, number]).choice(options.devices, options.per_round, replace=False)
        rows, parts = [], []
        for device in sorted(chosen.tolist()):
            mine = shares[device]
            split_network.load(net, weights)
            seen.clear()
            stream = (mine.batch(j) for j in mine.order(number, 0))
            for _ in train(net, tap.watch(stream), Training(lr=options.lr)):
                pass
            rows += [(device, batch, len(labels)) for batch, _, labels in seen]
            parts += [(activations, labels) for _, activations, labels in seen]
            trained = split_network.weights(net)
            exact_mean.check(weights, trained)
            total.add(trained, mine.samples)
        weights = total.result()
        arrays = {
            "batches": np.array(rows),
            "activations": np.concatenate([activations for activations, _ in parts]),
            "labels": np.concatenate([labels for _, labels in parts]),
            **{f"model.{name}": value for name, value in weights.items()},
        }
        part = folder / f"{number}.part"
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        part.replace(folder / f"{number}.npz")
        say(f"seed {options.seed}: federated round {number} of {rounds} recorded")
    tap.close()


def _batches(training: Dataset, options: Options, index: int) -> FixedBatches:
    partition = Partition(devices=options.devices, index=index, alpha=options.alpha, seed=options.seed)
    return FixedBatches(training, share(training.labels, partition), options.batch_size, options.seed)
