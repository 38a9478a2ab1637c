"""Updates of a small model, and what a rule makes of them."""

import numpy as np

from cloud_app.aggregation import aggregator
from emo.config import Rounds

RULES = ("mean", "median", "trimmed-mean", "multi-krum")
LIKE = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float32)}


def rounds(aggregate="mean", **values):
    """Nine devices, of which two may be hostile, unless said otherwise."""
    return Rounds.model_validate({"aggregate": aggregate, "min_devices": 9, "max_norm": 1e9} | values)


def moved(like, by):
    """`like` plus, for each float array, the numbers that `by` gives."""
    return {name: (array + by(array)).astype(array.dtype) for name, array in like.items()}


def updates(count, seed=0, like=LIKE):
    rng = np.random.default_rng(seed)
    return {f"d{n}": moved(like, lambda a: rng.normal(0, 1, a.shape)) for n in range(count)}


def outcome(chosen, sent, like=LIKE, samples=None, **values):
    total = aggregator.init(chosen, like, len(sent), **values)
    for device, weights in sent.items():
        total.add(device, weights, (samples or {}).get(device, 1), 1)
    return total.result()


def stacked(sent, name):
    return np.stack([sent[device][name] for device in sorted(sent)]).astype(np.float64)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert array.dtype == wanted[name].dtype
        assert array.tobytes() == wanted[name].tobytes()
