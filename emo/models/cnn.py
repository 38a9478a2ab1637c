"""A small split network for images from 4x4 on, made for the 8x8 digits of the demo; not from the paper.

Trunk 2C with one pooling (32x4x4 for 1x8x8), head 1F, overlay 3C + 2F.
"""

from functools import partial

from torch import nn

from emo.config import Model
from emo.models.layers import Parts, channels, conv, image, linear


def cnn(spec: Model) -> Parts:
    return Parts(partial(_trunk, spec), partial(_head, spec), partial(_overlay, spec))


def _trunk(spec: Model) -> nn.Module:
    depth, _, _ = image(spec, halvings=1)
    one, two = channels(16, spec), channels(32, spec)
    return nn.Sequential(*conv(depth, one, spec), *conv(one, two, spec), nn.MaxPool2d(2))


def _head(spec: Model) -> nn.Module:
    _, height, width = image(spec, halvings=1)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels(32, spec) * height * width, spec.classes))


def _overlay(spec: Model) -> nn.Module:
    _, height, width = image(spec, halvings=2)
    two, three, hidden = (channels(base, spec) for base in (32, 64, 128))
    return nn.Sequential(
        *conv(two, three, spec),
        *conv(three, three, spec),
        *conv(three, three, spec),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *linear(three * height * width, hidden),
        nn.Linear(hidden, spec.classes),
    )
