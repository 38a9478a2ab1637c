"""The rules that make one model of stored updates, some of whose senders may be hostile.

    mean            weighted by samples                          FedAvg: bears nobody
    median          of each coordinate                           Yin et al. 2018 (arXiv 1803.01498), algorithm 1, option I
    trimmed_mean    of each coordinate, without the f lowest
                    and the f highest                            the same, option II
    multi_krum      mean of the n - f - 2 updates that have the
                    nearest neighbours                           Blanchard et al. 2017 (NIPS), section 4

A rule takes the updates and f, how many of the devices may be hostile. It gives the new model and the devices that have
no part in it, and raises UpdateRefused where there are too few. But for the mean every device counts the same, whatever
it says of its samples: the papers' guarantees are for equal weights. Integer buffers (batch norm's counters) are no
directions: of these median and trimmed mean take the lower median.
"""

from collections.abc import Callable, Mapping

import numpy as np

from cloud_app.aggregation import exact_mean
from cloud_app.aggregation.update_store import UpdateStore
from emo.errors import UpdateRefused

Outcome = tuple[dict[str, np.ndarray], tuple[str, ...]]
Rule = Callable[[UpdateStore, int], Outcome]


def mean(store: UpdateStore, _hostile: int) -> Outcome:
    return _mean(store, store.samples), ()


def median(store: UpdateStore, _hostile: int) -> Outcome:
    """Bears fewer than half of the devices."""
    return trimmed_mean(store, max(0, len(store.devices) - 1) // 2)


def trimmed_mean(store: UpdateStore, hostile: int) -> Outcome:
    """Needs more than 2f updates."""
    count = len(store.devices)
    _need(count, 2 * hostile + 1)
    weights = {name: np.empty(array.shape, array.dtype) for name, array in store.like.items()}
    for block in store.blocks():
        if block.like.dtype.kind == "f":
            rows = np.sort(block.rows.astype(np.float64), axis=0)
            value = rows[hostile : count - hostile].mean(axis=0)  # of -0.0 too it makes 0.0, in any order
        else:
            value = np.sort(block.rows, axis=0)[(count - 1) // 2]
        weights[block.name].reshape(-1)[block.start : block.start + len(value)] = value
    return weights, ()


def multi_krum(store: UpdateStore, hostile: int) -> Outcome:
    """Needs 2f + 3 updates.

    An update's score is the sum of its squared distances to the n - f - 2 updates nearest to it; the n - f - 2 with
    the lowest scores are taken, the most that the guarantee is known for (El Mhamdi et al. 2018, arXiv 1802.07927)."""
    devices = store.devices
    _need(len(devices), 2 * hostile + 3)
    near = len(devices) - hostile - 2
    scores = np.sort(_distances(store), axis=1)[:, :near].sum(axis=1)
    taken = {devices[place] for place in np.argsort(scores, kind="stable")[:near]}
    left_out = tuple(device for device in devices if device not in taken)
    return _mean(store, dict.fromkeys(taken, 1)), left_out


def _mean(store: UpdateStore, samples: Mapping[str, int]) -> dict[str, np.ndarray]:
    total = exact_mean.init(store.like)
    for device in sorted(samples):
        weights = store.weights(device)
        exact_mean.bounded(weights)  # a disk may give back other bytes than it was given
        total.add(weights, samples[device])
    return total.result()


def _distances(store: UpdateStore) -> np.ndarray:
    """Squared distances between updates, float64 (n, n), with infinity on the diagonal. Made of products of the updates:
    products of the weights would differ in their last digits only."""
    count = len(store.devices)
    products = np.zeros((count, count))
    for block in store.blocks():
        if block.like.dtype.kind == "f":
            changes = block.rows.astype(np.float64) - block.like
            products += changes @ changes.T
    own = np.diag(products)
    squared = np.maximum(own[:, None] + own - (products + products.T), 0.0)
    np.fill_diagonal(squared, np.inf)
    return squared


def _need(count: int, least: int) -> None:
    if count < least:
        raise UpdateRefused(f"no update to average: {count} are there, this rule needs {least}")
