"""Leaves batches out of the training: those out of scale, and those whose labels the FL model finds unlikely.

One thread at a time, but for `head` and `state`, which another may set.

A device that lies about labels cannot be told by comparing it with other devices where none of them has its classes. The
FL model has learnt from all devices, so its head is asked, on the same activations. Labels that it finds less likely than a
guess among all classes (cross entropy above log K), batch by batch or in the mean of a device, are left out; unless it
finds so of most devices: then it has learnt nothing yet. An honest device with rare classes is left out in the first rounds
at most, until the FL model knows them a little.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import BaseModel
from torch import nn
from torch.nn.functional import cross_entropy

from edge_app.cache.replay_cache import Sample
from emo.journal import Journal
from emo.models.split_network import inference
from emo.wire.messages import Count, Finite

_RATE = 1 / 8  # of the running means
_KNOWS = 0.75  # of log K: below it in the median device, the head has learnt something
_AGAIN = 0.9  # of log K: below it a device is believed again
_SCALE = 4.0  # times the median device's; honest ones differed by a fifth at most
_VOTES = 3  # devices, below which nobody can say whose scale is the odd one


class FilterState(BaseModel, extra="forbid"):
    """What is known of the devices."""

    losses: dict[str, Finite] = {}  # mean cross entropy under the head
    scales: dict[str, Finite] = {}  # mean of log2 of the root mean square
    sizes: dict[str, Count] = {}  # samples of the largest batch
    distrusted: set[str] = set()  # their labels are not believed


class BatchFilter:
    """`head`: the FL model's, in eval mode, on the device of the samples; None: labels are believed."""

    def __init__(self, classes: int, journal: Journal) -> None:
        self._guess, self._journal = math.log(classes), journal
        self.head: nn.Module | None = None
        self.state = FilterState()

    def choose(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
        """(those to train on, those whose activations are out of scale). The weight of a batch with more samples than is usual
        is lowered, so that its device has no larger part of the step."""
        head, figures = self.head, []
        with torch.no_grad():
            for sample in samples:
                power = sample.activations.double().square().mean()
                figures += [power, power if head is None else self._loss(head, sample)]
        pairs = torch.stack(figures).view(-1, 2).tolist() if figures else []
        taken, wrong = [], []
        for sample, (power, loss) in zip(samples, pairs, strict=True):
            if self._odd(sample.device, math.log2(max(power, 1e-300)) / 2):
                wrong.append(sample)
            elif head is None or self._believes(sample.device, loss):
                taken.append(replace(sample, weight=sample.weight * self._part(sample)))
        self._journal.count("overlay.left_out", len(samples) - len(taken))
        return taken, wrong

    @staticmethod
    def _loss(head: nn.Module, sample: Sample) -> torch.Tensor:
        with inference(head):
            return cross_entropy(head(sample.activations), sample.labels).double()

    def _odd(self, device: str, scale: float) -> bool:
        scales = self.state.scales
        _learn(scales, device, scale)
        if len(scales) < _VOTES:
            return False
        odd = scale > statistics.median_low(scales.values()) + math.log2(_SCALE)
        if odd:
            self._journal.problem(
                "activations.out_of_scale",
                f"{device}: activations are more than {_SCALE:g} times as large as other devices'; set aside",
            )
        return odd

    def _believes(self, device: str, loss: float) -> bool:
        known = self.state
        if not math.isfinite(loss):
            loss = 100.0  # as far from likely as float32 tells
        mean = _learn(known.losses, device, min(loss, 100.0))
        usual = statistics.median_low(known.losses.values())
        knows = usual < _KNOWS * self._guess
        was, limit = device in known.distrusted, self._guess
        now = knows and mean > (_AGAIN * limit if was else limit)
        if now != was:
            (known.distrusted.add if now else known.distrusted.discard)(device)
            self._journal.event(
                "distrusted" if now else "trusted", device=device, loss=round(mean, 3), usual=round(usual, 3)
            )
            if now:
                self._journal.problem(
                    "devices.distrusted",
                    f"{device}: the FL model finds its labels less likely than a guess (loss {mean:.2f}, others "
                    f"{usual:.2f}); the overlay trains without it until that changes",
                )
        return not now and not (knows and loss > limit)

    def _part(self, sample: Sample) -> float:
        sizes, size = self.state.sizes, len(sample.labels)
        sizes[sample.device] = max(size, sizes.get(sample.device, 0))
        return min(1.0, statistics.median_low(sizes.values()) / size)


def _learn(means: dict[str, float], device: str, value: float) -> float:
    before = means.get(device, value)
    means[device] = before + _RATE * (value - before)
    return means[device]
