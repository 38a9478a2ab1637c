"""Deals the samples of one dataset out to devices: iid, Dirichlet, shards. And the 80/20 split of a dataset.

All shares are disjoint and seeded; without `per_device` they are complete and
their sizes differ by at most one. A share is int64 row numbers, ascending.
"""

import math

import numpy as np

from emo.config import Partition
from emo.errors import PartitionError


def share(labels: np.ndarray, spec: Partition) -> np.ndarray:
    """Rows of device `spec.index`; every device that names the same scheme and seed gets another part."""
    if spec.scheme == "iid":
        shares = iid(labels, spec.devices, spec.seed)
    elif spec.scheme == "shards":
        shares = shards(labels, spec.devices, spec.seed)
    else:
        shares = dirichlet(labels, spec.devices, spec.alpha, spec.seed)
    return shares[spec.index]


def iid(labels: np.ndarray, devices: int, seed: int) -> list[np.ndarray]:
    """One seeded shuffle, cut into equal parts. PartitionError: more devices than samples."""
    sizes = _sizes(labels, devices, None)
    rows = _generator(seed).permutation(len(labels))
    return [np.sort(part) for part in np.split(rows, np.cumsum(sizes)[:-1])]


def shards(labels: np.ndarray, devices: int, seed: int, shards_per_device: int = 2) -> list[np.ndarray]:
    """McMahan et al. 2017: samples in the order of their labels, cut into shards, a few to each device.

    PartitionError: fewer samples than shards.
    """
    sizes = _sizes(labels, devices, None)
    if shards_per_device < 1 or devices * shards_per_device > len(labels):
        raise PartitionError(
            f"{len(labels)} samples cannot be cut into {devices} x {shards_per_device} shards of at least one"
        )
    random = _generator(seed)
    rows = random.permutation(len(labels))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    # Each device's size is cut into its shards first and the shards then lie in any order along the labels:
    # so sizes differ by one a device, not by one a shard.
    owners = np.repeat(np.arange(devices), shards_per_device)
    cuts = np.concatenate([_even(size, shards_per_device) for size in sizes])
    order = random.permutation(len(owners))
    owner = np.repeat(owners[order], cuts[order])
    return [np.sort(rows[owner == device]) for device in range(devices)]


def dirichlet(
    labels: np.ndarray, devices: int, alpha: float, seed: int, per_device: int | None = None
) -> list[np.ndarray]:
    """Hsu et al. 2019 (arXiv 1909.06335, section 3): equal sizes, class proportions from Dir(alpha * prior).

    Each device in turn draws proportions q over the classes, then its samples without replacement; a class that is
    used up leaves q renormalised over the rest, so with all samples dealt out the last devices take what is left.
    alpha -> 0: one class a device; alpha -> infinity: the prior. (Where others draw from Dir(alpha) with no prior,
    their alpha is ours divided by the number of classes.) `per_device`: samples a device, else all are used.
    Raises PartitionError: more asked for than there is, or alpha not a positive number.
    """
    sizes = _sizes(labels, devices, per_device)
    if not (math.isfinite(alpha) and alpha > 0):
        raise PartitionError(f"alpha must be a positive number, found {alpha}")
    random = _generator(seed)
    _, numbers, left = np.unique(labels, return_inverse=True, return_counts=True)
    prior = left / len(labels)
    rows = random.permutation(len(labels))
    by_class = np.split(rows[np.argsort(numbers[rows], kind="stable")], np.cumsum(left)[:-1])
    shares = []
    for size in sizes:
        counts = _draw(random, _proportions(random, alpha * prior), left, int(size))
        # From the end of each class: `left` is both what remains and where it ends.
        taken = [by_class[c][left[c] - n : left[c]] for c, n in enumerate(counts) if n]
        left = left - counts
        shares.append(np.sort(np.concatenate(taken)))
    return shares


def holdout(labels: np.ndarray, seed: int, part: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) rows; `part` of every class, rounded, goes to test."""
    random = _generator(seed)
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        test[random.permutation(rows)[: round(part * len(rows))]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def _proportions(random: np.random.Generator, concentration: np.ndarray) -> np.ndarray:
    """A draw from the Dirichlet distribution; its limit, one class, where a tiny concentration underflows."""
    drawn: np.ndarray = random.dirichlet(np.clip(concentration, np.finfo(float).tiny, 1e12))
    if np.isfinite(drawn).all() and drawn.sum() > 0:
        return drawn
    drawn[:] = 0.0
    drawn[random.choice(len(drawn), p=concentration / concentration.sum())] = 1.0
    return drawn


def _draw(random: np.random.Generator, q: np.ndarray, left: np.ndarray, size: int) -> np.ndarray:
    """How many of each class. What exceeds a class is drawn again from the rest: drawing one by one, but fast."""
    counts = np.zeros_like(left)
    while (missing := size - int(counts.sum())) > 0:
        weights = np.where(counts < left, q, 0.0)
        if weights.sum() < np.finfo(float).tiny:  # q names used-up classes only
            weights = (left - counts).astype(float)
        counts = np.minimum(counts + random.multinomial(missing, weights / weights.sum()), left)
    return counts


def _sizes(labels: np.ndarray, devices: int, per_device: int | None) -> np.ndarray:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise PartitionError(f"labels must be integers (N,), found {labels.dtype} {labels.shape}")
    if devices < 1 or (per_device is not None and per_device < 1):
        raise PartitionError(f"{devices} devices with {per_device} samples each: both must be at least 1")
    asked = devices * (per_device or 1)
    if asked > len(labels):
        raise PartitionError(f"{devices} devices ask for at least {asked} samples, there are {len(labels)}")
    return _even(len(labels), devices) if per_device is None else np.full(devices, per_device)


def _even(total: int, parts: int) -> np.ndarray:
    return total // parts + (np.arange(parts) < total % parts).astype(np.int64)


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise PartitionError(f"a seed must not be negative, found {seed}")
    return np.random.default_rng(seed)
