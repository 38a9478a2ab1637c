"""What each codec makes of activations: bytes, error, speed.

    python -m bench.wire [--json FILE] [--dataset cifar10 --data-dir DIR --model vgg6 --width 0.25]

Trains a network on all of the training images for `--batches` steps, then codes the trunk's output for fixed batches,
one by one, as a device does. Codecs in "-delta" get as base the same batches' activations from the latest of the
trunk's earlier states (kept every 50 steps) that is at least `--change` away in relative L2: what lies between two
sends of a batch in docs/results/svcca.md is 0.2 to 0.5. The base is what the receiver has decoded.

`ratio`: raw fp32 bytes over encoded bytes. `frame_bytes`: of one batch's ActivationBatch on the wire, its frames and
their topics. `deltas`: share of the batches for which a delta was the smaller frame. `relative_l2`: of the decoded
against the original. MB/s are of raw fp32 over processor time of one thread, medians over turns that all codecs take
in alternation.
"""

import argparse
import itertools
import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from emo.config import CODECS, DELTA, Data, Model, Training
from emo.data import registry
from emo.data.batches import FixedBatches
from emo.errors import BaseError
from emo.local_sgd import evaluate, train
from emo.models import split_network
from emo.models.split_network import SplitNetwork
from emo.wire.codec import Packed, decode, encode
from emo.wire.messages import ActivationBatch
from testbed import figures
from testbed.workers import packets

EVERY = 50  # steps between two states of the trunk that are kept


class Batches(NamedTuple):
    """`now` and `before`: float32 (B, N, C, ...), the same images' activations; `labels`: int32 (B, N)."""

    now: np.ndarray
    before: np.ndarray
    labels: np.ndarray


def main() -> None:
    parser = figures.parser(__doc__, dataset="digits", data_dir=None, model="cnn", width=1.0, lr=0.01, turns=9)
    parser.add_argument("--batches", type=int, default=2000, help="steps of training, 16 images each")
    parser.add_argument("--change", type=float, default=0.3, help="relative L2 from the base")
    parser.add_argument("--coded", type=int, default=64, help="batches that are coded")
    args = parser.parse_args()
    torch.set_num_threads(1)
    batches, setting = _trained(args)
    figures.show(setting)
    codecs = _measure(batches, args.turns)
    print("\n" + " ".join(f"{name:>12}" for name in codecs[0]))
    for row in codecs:
        print(" ".join(f"{value:>12}" for value in row.values()))
    figures.write(args.json, {"codecs": codecs, "setting": setting})


def _trained(args: argparse.Namespace) -> tuple[Batches, dict[str, Any]]:
    training, test = registry.load(Data(name=args.dataset, dir=args.data_dir))
    classes = len(training.classes)
    spec = Model(name=args.model, width=args.width, input=training.images.shape[1:], classes=classes)
    net = split_network.network(spec, 0)
    fixed = FixedBatches(training, np.arange(len(training.labels)), 16, 0)
    stream = (fixed.batch(j) for turn in itertools.count() for j in fixed.order(turn, 0))
    states = [(0, split_network.weights(net))]
    for step, _loss in enumerate(train(net, itertools.islice(stream, args.batches), Training(lr=args.lr)), 1):
        if step % EVERY == 0:
            states.append((step, split_network.weights(net)))
    accuracy, _ = evaluate(net, test)
    coded = [fixed.batch(j).inputs for j in range(args.coded)]
    now = _activations(net, coded)
    since, before = _earlier(net, states, coded, now, args.change)
    labels = np.stack([fixed.batch(j).labels.numpy() for j in range(args.coded)]).astype("<i4")
    return Batches(now, before, labels), {
        "dataset": args.dataset,
        "model": f"{args.model} x {args.width:g}",
        "batches": args.batches,
        "lr": args.lr,
        "accuracy": round(accuracy, 4),
        "change": round(_relative(before, now), 3),
        "base_steps_ago": args.batches - since,
        "shape": list(now.shape[1:]),
        "raw_bytes": now[0].nbytes,
        "zeros": round(float((now == 0).mean()), 3),
        "coded": args.coded,
        "turns": args.turns,
    }


def _earlier(
    net: SplitNetwork,
    states: list[tuple[int, dict[str, np.ndarray]]],
    coded: list[torch.Tensor],
    now: np.ndarray,
    change: float,
) -> tuple[int, np.ndarray]:
    """(step, activations) of the latest state that is far enough from `now`; of the first, where none is."""
    for step, state in reversed(states):
        split_network.load(net, state)
        before = _activations(net, coded)
        if step == 0 or _relative(before, now) >= change:
            return step, before
    raise AssertionError("the states begin with step 0")


def _activations(net: SplitNetwork, inputs: list[torch.Tensor]) -> np.ndarray:
    with split_network.inference(net.trunk):
        return np.stack([net.trunk(batch).numpy() for batch in inputs])


def _measure(batches: Batches, turns: int) -> list[dict[str, Any]]:
    bases = {name: _bases(batches.before, name) for name in CODECS}
    rows = {name: _row(name, batches, bases[name]) for name in CODECS}
    speeds = figures.in_turns({name: partial(_speeds, name, batches.now, bases[name]) for name in CODECS}, turns)
    for name, row in rows.items():
        row["encode_MBps"], row["decode_MBps"] = (
            round(statistics.median(each)) for each in zip(*speeds[name], strict=True)
        )
    return list(rows.values())


def _bases(before: np.ndarray, codec: str) -> list[np.ndarray | None]:
    """What the receiver holds of each batch."""
    if not codec.endswith(DELTA):
        return [None] * len(before)
    return [decode(encode(each, codec), each.nbytes) for each in before]


def _row(codec: str, batches: Batches, bases: list[np.ndarray | None]) -> dict[str, Any]:
    now, limit = batches.now, batches.now[0].nbytes
    encoded = [encode(each, codec, base) for each, base in zip(now, bases, strict=True)]
    decoded = np.stack([decode(each, limit, base) for each, base in zip(encoded, bases, strict=True)])
    wire = [_on_wire(*each) for each in zip(encoded, batches.labels, strict=True)]
    return {
        "name": codec,
        "ratio": round(now.nbytes / sum(map(len, encoded)), 2),
        "relative_l2": float(f"{_relative(decoded, now):.3g}"),
        "encoded_bytes": round(statistics.fmean(map(len, encoded))),
        "frame_bytes": round(statistics.fmean(wire)),
        "deltas": round(statistics.fmean(_is_delta(each, limit) for each in encoded), 2),
    }


def _is_delta(encoded: bytes, limit: int) -> bool:
    try:
        decode(encoded, limit)
    except BaseError:
        return True
    return False


def _on_wire(encoded: bytes, labels: np.ndarray) -> int:
    packed = Packed(encoded)
    message = ActivationBatch("20261101T120000-0", "edge-1", "device-1", 17, 40, packed, labels)
    return packets.size(packets.Sender(0).encode(message))


def _speeds(codec: str, now: np.ndarray, bases: list[np.ndarray | None]) -> tuple[float, float]:
    """MB/s of encoding and of decoding, over all batches once."""
    pairs, limit = list(zip(now, bases, strict=True)), now[0].nbytes
    began = time.process_time()
    encoded = [encode(each, codec, base) for each, base in pairs]
    between = time.process_time()
    for each, base in zip(encoded, bases, strict=True):
        decode(each, limit, base)
    ended = time.process_time()
    return now.nbytes / 1e6 / (between - began), now.nbytes / 1e6 / (ended - between)


def _relative(ours: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(ours - wanted) / np.linalg.norm(wanted))


if __name__ == "__main__":
    main()
