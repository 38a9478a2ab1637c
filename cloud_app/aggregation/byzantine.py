"""What a round's updates come to where some of their senders are hostile.

Knows the updates in a spool, in the order of their devices. Knows no round, no norm and no file.

    median          of each coordinate                           Yin et al. 2018 (arXiv 1803.01498), algorithm 1, option I
    trimmed_mean    of each coordinate, without the f lowest
                    and the f highest                            the same, option II
    multi_krum      mean of the n - f - 2 updates that have the
                    nearest neighbours                           Blanchard et al. 2017 (NIPS), section 4

Every device counts the same, whatever it says of its samples: the papers' guarantees are for equal weights. Integer
buffers (batch norm's counters) are no directions: of these median and trimmed mean take the lower median.
"""

import numpy as np

from cloud_app.aggregation import exact_mean
from cloud_app.aggregation.update_store import Spool, Weights
from emo.errors import UpdateRefused


def median(spool: Spool, like: Weights) -> dict[str, np.ndarray]:
    """Bears fewer than half of the devices. Raises UpdateRefused when there is no update."""
    return trimmed_mean(spool, like, max(0, len(spool.devices) - 1) // 2)


def trimmed_mean(spool: Spool, like: Weights, hostile: int) -> dict[str, np.ndarray]:
    """Bears `hostile` devices, f. Raises UpdateRefused when no more than 2f are there."""
    count = len(spool.devices)
    _need(count, 2 * hostile + 1)
    found = {name: np.empty(array.shape, array.dtype) for name, array in like.items()}
    for block in spool.blocks():
        if block.like.dtype.kind == "f":
            rows = np.sort(block.rows.astype(np.float64), axis=0)
            value = rows[hostile : count - hostile].mean(axis=0)  # of -0.0 too it makes 0.0, in any order
        else:
            value = np.sort(block.rows, axis=0)[(count - 1) // 2]
        found[block.name].reshape(-1)[block.start : block.start + len(value)] = value
    return found


def multi_krum(spool: Spool, like: Weights, hostile: int) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The mean, and who is not in it. Bears `hostile` devices, f. Raises UpdateRefused when fewer than 2f + 3 are there.

    An update's score is the sum of its squared distances to the n - f - 2 updates nearest to it; the n - f - 2 with
    the lowest scores are taken, the most that the guarantee is known for (El Mhamdi et al. 2018, arXiv 1802.07927)."""
    devices = spool.devices
    _need(len(devices), 2 * hostile + 3)
    near = len(devices) - hostile - 2
    scores = np.sort(_distances(spool), axis=1)[:, :near].sum(axis=1)
    taken = {devices[place] for place in np.argsort(scores, kind="stable")[:near]}
    total = exact_mean.init(like)
    for device in sorted(taken):
        total = exact_mean.add(total, spool.weights(device), 1)
    return exact_mean.result(total), tuple(device for device in devices if device not in taken)


def _distances(spool: Spool) -> np.ndarray:
    """Squared, float64 (n, n); to itself each has an infinite one. By products of the updates, not of the weights, which
    differ in their last digits only."""
    count = len(spool.devices)
    products = np.zeros((count, count))
    for block in spool.blocks():
        if block.like.dtype.kind == "f":
            changes = block.rows.astype(np.float64) - block.like
            products += changes @ changes.T
    own = np.diag(products)
    found = np.maximum(own[:, None] + own - (products + products.T), 0.0)
    np.fill_diagonal(found, np.inf)
    return found


def _need(count: int, least: int) -> None:
    if count < least:
        raise UpdateRefused(f"no update to average: {count} are there, this rule needs {least}")
