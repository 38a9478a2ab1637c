"""One round's updates to one model, also where some devices are broken or hostile: (init, add, result), as in fedavg.

Knows a round's rule (`rounds.aggregate`), how far an update may go and how much a device may count. Knows no phase and
no message. The same updates give the same bits, whatever order they come in.

    mean, also with a fixed `clip_norm`    a running sum (exact_mean.py): memory of one model, whatever the fleet
    everything else                        every update is kept until the round is closed: a file each (update_store.py)

An update that goes further than `max_norm` times the model is refused. One that goes further than `clip_norm` is shortened
to it: a fixed norm (Sun et al. 2019, arXiv 1911.07963), or the median of the round's own (FLAME: Nguyen et al. 2022,
arXiv 2101.02281, section 4.2), which needs no figure and which fewer than half of the devices cannot move at will.
`samples` are only claimed: for the weighted mean they are cut where a device would count for more than `max_weight` fair
shares of what those who are asked have announced (truncation: Portnoy et al. 2020, arXiv 2004.04986); the other rules let
every device count the same. Which tensors are averaged at all, and what each may become: emo/models/state.py.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloud_app.aggregation import byzantine, clipping, exact_mean, update_store
from cloud_app.aggregation.update_store import Spool, Weights
from emo.config import Rounds
from emo.errors import UpdateRefused
from emo.models.state import PLAIN, Layout


@dataclass(frozen=True)
class Total:
    """Updates added so far. `start`: the model that the round started from, `like`: what of it training changes; `epochs`:
    of the round; `devices`: asked in it; `bound`: the largest norm of an update; `cap`: the most samples that one device
    counts for. `sum`, or else `kept`, holds the updates; `counted`: device -> samples, `norms`: device -> norm, as it came."""

    rounds: Rounds
    layout: Layout
    start: Weights
    like: Weights
    epochs: int
    devices: int
    bound: float
    cap: int | None
    sum: exact_mean.Sum | None
    kept: Spool | None
    counted: Mapping[str, int] = field(default_factory=dict)
    norms: Mapping[str, float] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(self.counted.values())

    @property
    def updates(self) -> int:
        return len(self.counted)

    def weight(self, samples: int) -> int:
        """What a device that claims `samples` counts for."""
        return samples if self.cap is None else min(samples, self.cap)


@dataclass(frozen=True)
class Result:
    """`weights`: the new global model. Of the devices: whose update was shortened, and whose multi-Krum did not take."""

    weights: Weights
    clipped: tuple[str, ...]
    left_out: tuple[str, ...]


def keeps_all(rounds: Rounds) -> bool:
    """Whether every update is kept until the round is closed."""
    return rounds.aggregate != "mean" or rounds.clip_norm == "median"


def check(rounds: Rounds, like: Weights, folder: Path | None) -> None:
    """Raises ConfigError when the updates of a round would not fit on the disk of `folder`."""
    if keeps_all(rounds):
        update_store.must_fit(like, rounds.per_round or rounds.min_devices, folder)


def cap(rounds: Rounds, announced: Sequence[int]) -> int | None:
    """The most samples that one of the devices that are asked counts for, by what they have announced: with all cut to it,
    none has more than `max_weight` times an equal share of the sum. One that announces nothing adds nothing to that sum.
    None: no limit."""
    if rounds.max_weight is None:
        return None
    left = sorted(announced, reverse=True)
    for cut, largest in enumerate(left):  # so many are over it
        most = rounds.max_weight * sum(left[cut:]) / (len(left) - rounds.max_weight * cut)
        if most >= largest:
            return max(1, int(most))
    return 1


def init(
    rounds: Rounds,
    start: Weights,
    devices: int,
    cap: int | None = None,
    folder: Path | None = None,
    layout: Layout = PLAIN,
    epochs: int = 1,
) -> Total:
    """The empty total of a round in which `devices` are asked to train `epochs` epochs, from the weights `start`. `folder`:
    for updates that are kept; it is emptied (None: a temporary one). Raises ConfigError when it cannot be used."""
    like = layout.trained(start)
    bound = rounds.max_norm * max(1.0, clipping.norm(like))
    kept, sum_ = (Spool(like, folder), None) if keeps_all(rounds) else (None, exact_mean.init(like))
    return Total(rounds, layout, start, like, epochs, devices, bound, cap, sum_, kept)


def resume(total: Total, counted: Mapping[str, int], found: exact_mean.Sum) -> Total:
    """`total`, empty, with the sum that another process had of the updates `counted`: device -> samples."""
    assert total.sum is not None
    return dataclasses.replace(total, sum=found, counted=dict(counted))


def add(total: Total, device: str, weights: Weights, samples: int) -> Total:
    """`total` and the weights of `device`, from which it has not come yet. Reuses what `total` holds.

    Raises UpdateRefused, with `total` unchanged, as fedavg.add does, and on an update that goes too far."""
    exact_mean.fits(total.start, weights)
    total.layout.check(total.start, weights, samples * total.epochs)
    weights = total.layout.trained(weights)
    exact_mean.check(total.like, weights)
    norm = clipping.norm(total.like, weights)
    if norm > total.bound:
        raise UpdateRefused(
            f"it changes the model by {norm:.3g} (L2 norm); at most {total.bound:.3g} is taken, "
            f"{total.rounds.max_norm:g} times the model's own (rounds.max_norm). Is the learning rate too high?"
        )
    limit, count = total.rounds.clip_norm, total.weight(samples)
    if isinstance(limit, float) and norm > limit:
        weights = clipping.clipped(total.like, weights, norm, limit)
    found = total.sum
    if found is not None:
        found = exact_mean.add(found, weights, count)
    else:
        assert total.kept is not None
        if (
            samples < 1
            or total.samples + count > exact_mean.MAX_SAMPLES
            or total.updates >= exact_mean.MAX_UPDATES
        ):
            raise UpdateRefused(f"{samples} samples: a round takes 1 to {exact_mean.MAX_SAMPLES} in all")
        total.kept.put(device, weights)
    return dataclasses.replace(
        total,
        sum=found,
        counted={**total.counted, device: count},
        norms={**total.norms, device: norm},
    )


def result(total: Total) -> Result:
    """What the rule makes of it. What was kept is gone after that.

    Raises UpdateRefused when no update has come, or too few for the rule, or one cannot be read again."""
    rounds, limit = total.rounds, total.rounds.clip_norm
    weights: Weights
    left_out: tuple[str, ...] = ()
    if total.sum is not None:
        over = _over(total, limit) if isinstance(limit, float) else ()
        return Result(total.layout.whole(exact_mean.result(total.sum), total.start), over, ())
    kept, hostile = total.kept, rounds.hostile(total.devices)
    assert kept is not None
    if limit == "median" and total.norms:
        limit = statistics.median(total.norms.values())
        for device in _over(total, limit):
            shorter = clipping.clipped(total.like, kept.weights(device), total.norms[device], limit)
            kept.put(device, shorter)
    if rounds.aggregate == "median":
        weights = byzantine.median(kept, total.like)
    elif rounds.aggregate == "trimmed-mean":
        weights = byzantine.trimmed_mean(kept, total.like, hostile)
    elif rounds.aggregate == "multi-krum":
        weights, left_out = byzantine.multi_krum(kept, total.like, hostile)
    else:
        sum_ = exact_mean.init(total.like)
        for device in kept.devices:
            sum_ = exact_mean.add(sum_, kept.weights(device), total.counted[device])
        weights = exact_mean.result(sum_)
    kept.clear()
    weights = total.layout.whole(weights, total.start)
    return Result(weights, () if limit is None else _over(total, float(limit)), left_out)


def _over(total: Total, limit: float) -> tuple[str, ...]:
    return tuple(sorted(device for device, norm in total.norms.items() if norm > limit))
