"""What training from the replay cache costs: steps a second over those from one tensor in memory.

    python -m bench.replay [--json FILE] [--model mobilenet6 --width 1 --codec fp16 --batches 100]

`replay_ratio_fit`: all batches in level 1; `replay_ratio_tenth`: a tenth of them, the rest comes from the disk (out of
the page cache, mostly), decoded, while training goes on. Four batches of 16 samples a step, drawn at random; one torch
thread trains, and a second core, where there is one, fetches.

Within a turn the three train one after the other, in every order, so that the machine's other work hits them alike;
a ratio is the median over the turns. None gets ahead by the others' time: the steps that could live on what was
fetched meanwhile are not timed. `starved_ms` is what a step of the tenth waits for the disk, `fetched` the share of its
batches that were brought in time.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache
from edge_app.cache.tensor_slots import Sample
from edge_app.overlay.trainer import Trainer
from emo.config import CODECS, DELTA, Model, Overlay, Tap
from emo.models import split_network
from emo.wire import codec
from testbed import figures

_SAMPLES, _CLASSES, _TOGETHER = 16, 10, 4
_PLAIN = "plain"  # arrays as they are, without a codec
Step = Callable[[], object]


def main() -> None:
    parser = figures.parser(__doc__, model="mobilenet6", width=1.0, turns=24)
    parser.add_argument(
        "--codec",
        choices=[_PLAIN, *(c for c in CODECS if DELTA not in c)],
        help="how the cache holds them (default: as a device sends them)",
    )
    parser.add_argument("--batches", type=int, default=100, help="in the cache")
    parser.add_argument("--steps", type=int, default=8, help="that are timed at a time")
    args = parser.parse_args()
    measured = measure(args.model, args.width, args.codec, args.batches, args.steps, args.turns)
    figures.show(measured)
    figures.write(args.json, measured)


def measure(
    model: str = "mobilenet6",
    width: float = 1.0,
    stored_as: str | None = None,
    batches: int = 100,
    steps: int = 8,
    turns: int = 24,
) -> dict[str, float]:
    """`replay_ratio_fit`, `replay_ratio_tenth`, and what they are made of. `stored_as`: a codec, "plain", or None for
    the taps' default."""
    torch.set_num_threads(1)
    spec = Model(name=model, width=width, input=(3, 32, 32), classes=_CLASSES)
    shape = (_SAMPLES, *split_network.split_shape(spec))
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="emo-replay-") as folder, DiskCache(folder) as disk:
        arrays, labels = _fill(disk, shape, batches, stored_as or Tap().codec.removesuffix(DELTA), random)
        size = 4 * arrays[0].size + 8 * _SAMPLES
        with (
            closing(ReplayCache(disk, batches * size, 0)) as fit,
            closing(ReplayCache(disk, batches * size // 10, 0)) as tenth,
        ):
            for cache in (fit, tenth):
                while cache.stats()["fresh"]:  # everything was trained on once: the rest is replay
                    cache.sample()
            trainer = Trainer(split_network.overlay(spec, 0), Overlay())
            takers = {
                "tensor": _from_tensor(trainer, torch.from_numpy(arrays), torch.from_numpy(labels), random),
                "fit": _from_cache(trainer, fit),
                "tenth": _from_cache(trainer, tenth),
            }
            lead = 2 + tenth.stats()["memory_entries"] // _TOGETHER
            times: dict[str, list[float]] = {name: [] for name in takers}
            waits, late, drawn = [], 0, 0
            for order in itertools.islice(itertools.cycle(itertools.permutations(takers)), turns):
                for name in order:
                    for _ in range(lead):
                        takers[name]()
                    before, began = tenth.stats(), time.perf_counter()
                    for _ in range(steps):
                        takers[name]()
                    times[name].append((time.perf_counter() - began) / steps)
                    if name == "tenth":
                        after = tenth.stats()
                        waits.append((after["starved_us"] - before["starved_us"]) / steps / 1e3)
                        late += after["disk_reads"] - before["disk_reads"]
                        drawn += steps * _TOGETHER
    return {
        **{f"replay_ratio_{name}": round(_ratio(times["tensor"], times[name]), 4) for name in ("fit", "tenth")},
        **{f"{name}_step_ms": round(1e3 * statistics.median(taken), 3) for name, taken in times.items()},
        "starved_ms": round(statistics.median(waits), 3),
        "fetched": round(1 - late / drawn, 4),
        "batch_MB": round(size / 1e6, 3),
    }


def _fill(
    disk: DiskCache, shape: tuple[int, ...], batches: int, stored_as: str, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The arrays (batches, N, ...) float32 as they are once decoded, and labels (batches, N)."""
    arrays = np.empty((batches, *shape), np.float32)
    labels = random.integers(0, _CLASSES, (batches, _SAMPLES))
    for number in range(batches):
        array = np.maximum(random.standard_normal(shape, np.float32), 0)
        encoded = None if stored_as == _PLAIN else codec.encode(array, stored_as)
        arrays[number] = array if encoded is None else codec.decode(encoded, array.nbytes)
        disk.put("bench", number, 0, encoded or array, labels[number])
    return arrays, labels


def _from_tensor(trainer: Trainer, arrays: Tensor, labels: Tensor, random: np.random.Generator) -> Step:
    def step() -> None:
        chosen = random.integers(0, len(arrays), _TOGETHER)
        trainer.step([(arrays[number], labels[number]) for number in chosen])

    return step


def _from_cache(trainer: Trainer, cache: ReplayCache) -> Step:
    def sample() -> Sample:
        sampled = cache.sample()
        assert sampled is not None
        return sampled

    def step() -> None:
        samples = [sample() for _ in range(_TOGETHER)]
        losses = trainer.step([(each.activations, each.labels) for each in samples])
        for each, loss in zip(samples, losses, strict=True):
            cache.trained(each, loss)

    return step


def _ratio(plain: list[float], cached: list[float]) -> float:
    """Steps a second from the cache over those from the tensor."""
    return statistics.median(a / b for a, b in zip(plain, cached, strict=True))


if __name__ == "__main__":
    main()
