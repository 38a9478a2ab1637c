"""What the built-in networks share: the three parts, channel counts, one convolution with its norm."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from emo.config import Model
from emo.errors import ModelError


class Parts(NamedTuple):
    """A split network as three factories, so that a device never builds the overlay.

    trunk: (N, *input) -> (N, *split); head and overlay: (N, *split) -> logits (N, classes). All float32.
    """

    trunk: Callable[[], nn.Module]
    head: Callable[[], nn.Module]
    overlay: Callable[[], nn.Module]


def channels(base: int, spec: Model) -> int:
    """`base` times the width multiplier, to the nearest multiple of 8, at least 8."""
    return max(8, 8 * round(base * spec.width / 8))


def image(spec: Model, halvings: int = 0) -> tuple[int, int, int]:
    """(channels, height, width) of the input after `halvings` poolings by two. ModelError where nothing is left."""
    if len(spec.input) != 3:
        raise ModelError(f"model.input: {spec.name} takes images, (channels, height, width); found {spec.input}")
    depth, height, width = spec.input
    least = 2**halvings
    if min(height, width) < least:
        raise ModelError(
            f"model.input: {spec.name} halves its input {halvings} times, so it needs at least "
            f"{least}x{least}; found {height}x{width}"
        )
    return depth, height // least, width // least


def conv(
    inputs: int, outputs: int, spec: Model, *, kernel: int = 3, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution, norm, ReLU. No bias where a norm follows, which would take it out again."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=spec.norm == "none")
    # He et al. 2015: without a norm, torch's own initial weights let eleven layers fade to nothing.
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return [layer, *_norm(outputs, spec), nn.ReLU()]


def linear(inputs: int, outputs: int) -> list[nn.Module]:
    """A hidden linear layer and its ReLU."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return [layer, nn.ReLU()]


def _norm(outputs: int, spec: Model) -> list[nn.Module]:
    if spec.norm == "batch":
        return [nn.BatchNorm2d(outputs)]
    if spec.norm == "group":
        # 16 channels a group, 8 where 16 does not divide (Wu & He 2018, table 3): never one channel alone,
        # which on a 1x1 map would be normalised to zero.
        return [nn.GroupNorm(outputs // math.gcd(outputs, 16), outputs)]
    return []
