"""What each tensor of a network's state is, and so what a round of honest training may do to it: decided here, once.

trained     parameters, a norm's running statistics, whatever else a pass in training moves: averaged
variance    of these, a norm's `running_var`: never below zero
counter     of these, integers that every pass raises, as `num_batches_tracked`: by so much a pass, and no more
constant    what training leaves alone, masks, tables of indices, frozen layers: each node keeps its own
tied        a second name of a tensor: the first stands for both
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from emo.errors import ModelError, UpdateRefused
from emo.models import split_network
from emo.seeds import Draws
from emo.wire.compression import Weights

_STATISTICS = {"running_mean", "running_var"}


@dataclass(frozen=True)
class Layout:
    """By name: `constants`; `tied`: another name -> the first; `counters` -> what one pass adds at most."""

    constants: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)

    def trained(self, weights: Weights) -> dict[str, np.ndarray]:
        """Of a whole state, what training changes, each tensor once."""
        return {n: array for n, array in weights.items() if n not in self.constants and n not in self.tied}

    def whole(self, trained: Weights, start: Weights) -> dict[str, np.ndarray]:
        """`trained`, with the constants of `start` and under all names, in the order of `start`."""
        return {name: trained.get(self.tied.get(name, name), array) for name, array in start.items()}

    def check(self, start: Weights, weights: Weights, passes: int) -> None:
        """Raises UpdateRefused where `passes` forward passes in training cannot have made `weights` of `start`, which
        have the same names, shapes and dtypes. How far they have gone is not looked at."""
        wrong = unsound(start, weights)
        if wrong:
            raise UpdateRefused(wrong)
        for name, step in self.counters.items():
            if (weights[name] > start[name].astype(np.int64) + step * passes).any():
                raise UpdateRefused(
                    f"{name} is {weights[name].max()}, and was {start[name].max()} when the round began: its samples "
                    f"and epochs make {passes} batches at most"
                )


PLAIN = Layout()  # every tensor is trained


def unsound(start: Weights, weights: Weights) -> str:
    """What in `weights`, of the same names and shapes as `start`, no training of `start` can have come to: NaN or infinity
    where it has none, a norm's variance below zero. Empty where there is nothing of the kind."""
    for name, array in weights.items():
        if array.dtype.kind == "f" and (~np.isfinite(array) & np.isfinite(start[name])).any():
            return f"{name} holds NaN or infinity"
        if _last(name) == "running_var" and (array < 0).any() and not (start[name] < 0).any():
            return f"{name} has a variance below zero"
    return ""


def layout(module: nn.Module, shape: tuple[int, ...]) -> Layout:
    """Of `module`, by one pass in training over three random samples of `shape`; its state is then as before.

    Raises ModelError where it cannot take them."""
    before, modes = split_network.weights(module), [(part, part.training) for part in module.modules()]
    try:
        with Draws().seeded(0), torch.no_grad():
            module.train()(torch.randn(3, *shape))
    except Exception as error:  # a user's module may raise anything
        raise ModelError(f"the network cannot train on three samples of shape {list(shape)}: {error}") from error
    finally:
        for part, training in modes:
            part.training = training
    after = split_network.weights(module)
    split_network.load(module, before)
    # The mean of what is already normalised may not move at all.
    moved = {n for n, a in after.items() if a.tobytes() != before[n].tobytes() or _last(n) in _STATISTICS}
    again, whole = tied(module), {n for n in moved if after[n].dtype.kind in "iu"}
    counters = {n: int((after[n].astype(np.int64) - before[n]).max()) for n in whole - again.keys()}
    counters = {n: step for n, step in counters.items() if step > 0}
    trained = {n for n, value in module.named_parameters(remove_duplicate=False) if value.requires_grad}
    return Layout(frozenset(before.keys() - trained - (moved - whole) - counters.keys()), again, counters)


def tied(module: nn.Module) -> dict[str, str]:
    """The names of tensors that have another already -> that one, the first."""
    names, first = module.state_dict(keep_vars=True), dict[int, str]()
    return {name: first[id(value)] for name, value in names.items() if first.setdefault(id(value), name) != name}


def _last(name: str) -> str:
    return name.rpartition(".")[2]
