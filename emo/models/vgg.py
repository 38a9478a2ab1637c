"""VGG as the paper splits it for CIFAR-10 (section IV, table I): trunk 4C, head 2F, overlay 4C + 3F.

The bytes of table III settle the trunk, 64-P-128-P-256-256-P: its activation is 256x4x4 for 3x32x32. They do not
settle the hidden linear layers: 512 here, times the width. No dropout: the paper names none, and a round stays
the same bits.
"""

from functools import partial

from torch import nn

from emo.config import Model
from emo.models.layers import Parts, channels, conv, image, linear


def vgg6(spec: Model) -> Parts:
    """FL-Small: a device trains 4C + 2F, the edge's overlay makes it VGG-11."""
    return Parts(partial(_trunk, spec), partial(_head, spec), partial(_overlay, spec))


def vgg11(spec: Model) -> Parts:
    """FL-Large and SFL: the same trunk, with the overlay's layers as the head."""
    return Parts(partial(_trunk, spec), partial(_overlay, spec), partial(_overlay, spec))


def _trunk(spec: Model) -> nn.Module:
    depth, _, _ = image(spec, halvings=3)
    one, two, three = (channels(base, spec) for base in (64, 128, 256))
    return nn.Sequential(
        *conv(depth, one, spec),
        nn.MaxPool2d(2),
        *conv(one, two, spec),
        nn.MaxPool2d(2),
        *conv(two, three, spec),
        *conv(three, three, spec),
        nn.MaxPool2d(2),
    )


def _head(spec: Model) -> nn.Module:
    _, height, width = image(spec, halvings=3)
    hidden = channels(512, spec)
    features = channels(256, spec) * height * width
    return nn.Sequential(nn.Flatten(), *linear(features, hidden), nn.Linear(hidden, spec.classes))


def _overlay(spec: Model) -> nn.Module:
    _, height, width = image(spec, halvings=5)
    three, four, hidden = (channels(base, spec) for base in (256, 512, 512))
    return nn.Sequential(
        *conv(three, four, spec),
        *conv(four, four, spec),
        nn.MaxPool2d(2),
        *conv(four, four, spec),
        *conv(four, four, spec),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *linear(four * height * width, hidden),
        *linear(hidden, hidden),
        nn.Linear(hidden, spec.classes),
    )
