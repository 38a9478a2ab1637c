"""What one step trains on, and its augmentation in activation space: mirrored maps, mixup (Zhang et al. 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from emo.config import Overlay
from emo.errors import ModelError


@dataclass(frozen=True, slots=True)
class Rows:
    """The N samples of one step, on the device of the overlay.

    `activations` (N, ...) float32; `labels` (K, N) int64, K = 1, after mixup 2. `weights` (K, N) float32: what a
    sample's cross entropy against each of its labels counts; None: 1. `share`: what the first label has in the
    sample, 1 - share the second. `seed`: of what the module draws in this step.
    """

    activations: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor | None = None
    share: float = 1.0
    seed: int = 0

    def part(self, start: int, end: int) -> "Rows":
        """Samples `start` to `end` alone, as a view."""
        weights = None if self.weights is None else self.weights[:, start:end]
        return replace(self, activations=self.activations[start:end], labels=self.labels[:, start:end], weights=weights)


class Augment:
    """`settings.flip`: each sample is mirrored along its last axis with probability 1/2. `settings.mixup`: alpha.
    Both off: the rows as they are but for their seed."""

    def __init__(self, settings: Overlay) -> None:
        self._flip, self._alpha = settings.flip, settings.mixup
        self._random = np.random.default_rng([settings.seed, 1])  # the sampler has the seed itself

    def __call__(self, rows: Rows) -> Rows:
        """New rows; those given stay as they are. Raises ModelError for `flip` of what is not (N, C, H, W)."""
        rows = replace(rows, seed=int(self._random.integers(2**63)))
        if self._flip:
            rows = self._mirrored(rows)
        return self._mixed(rows) if self._alpha > 0 else rows

    def state(self) -> dict[str, Any]:
        """Where its random numbers stand; JSON-able."""
        return dict(self._random.bit_generator.state)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. Raises ModelError for anything else."""
        self._random = generator(state)

    def _mirrored(self, rows: Rows) -> Rows:
        if rows.activations.ndim != 4:
            raise ModelError(
                f"overlay.flip: activations {tuple(rows.activations.shape)} are no maps (N, C, H, W) that could "
                "be mirrored; set it to false"
            )
        chosen = self._random.random(len(rows.activations)) < 0.5
        index = torch.from_numpy(np.flatnonzero(chosen)).to(rows.activations.device)
        activations = rows.activations.clone()
        activations[index] = rows.activations[index].flip(-1)
        return replace(rows, activations=activations)

    def _mixed(self, rows: Rows) -> Rows:
        """One share for the step, as the paper's own code has it. A label counts with the weight of its own batch."""
        share = float(self._random.beta(self._alpha, self._alpha))
        device = rows.activations.device
        other = torch.from_numpy(self._random.permutation(len(rows.activations))).to(device)
        weights = torch.ones_like(rows.labels, dtype=torch.float32) if rows.weights is None else rows.weights
        return Rows(
            torch.lerp(rows.activations[other], rows.activations, share),
            torch.cat([rows.labels, rows.labels[:, other]]),
            torch.cat([share * weights, (1 - share) * weights[:, other]]),
            share,
            rows.seed,
        )


def generator(state: Mapping[str, Any]) -> np.random.Generator:
    """A generator that goes on from `state`, as `Augment.state` gives it. Raises ModelError for anything else."""
    made = np.random.default_rng(0)
    try:
        made.bit_generator.state = state
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ModelError(f"not the state of a random generator: {error}") from error
    return made
