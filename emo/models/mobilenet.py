"""MobileNet v1 (Howard 2017) as the paper splits it for CIFAR-100 (table I): trunk 5C, head 1F, overlay 6C + 1F.

A depthwise and a pointwise convolution count as one C each. With batch norm and 100 classes the parameter counts
are those that table III's bytes prove: 25,508 and 816,676. The split is 128x16x16 for 3x32x32. The paper gives no
strides for the overlay; two at each of its three depthwise convolutions here, as v1 has where channels double.
"""

from functools import partial

from torch import nn

from emo.config import Model
from emo.models.layers import Parts, channels, conv, image


def mobilenet6(spec: Model) -> Parts:
    """FL-Small: a device trains 5C + 1F, the edge's overlay makes it MobileNet-12."""
    return Parts(partial(_trunk, spec), partial(_head, spec), partial(_overlay, spec))


def mobilenet12(spec: Model) -> Parts:
    """FL-Large and SFL: the same trunk, with the overlay's layers as the head."""
    return Parts(partial(_trunk, spec), partial(_overlay, spec), partial(_overlay, spec))


def _separable(inputs: int, outputs: int, spec: Model, stride: int) -> list[nn.Module]:
    depthwise = conv(inputs, inputs, spec, stride=stride, groups=inputs)
    return [*depthwise, *conv(inputs, outputs, spec, kernel=1)]


def _classify(inputs: int, spec: Model) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, spec.classes)]


def _trunk(spec: Model) -> nn.Module:
    depth, _, _ = image(spec)
    one, two, three = (channels(base, spec) for base in (32, 64, 128))
    return nn.Sequential(
        *conv(depth, one, spec),
        *_separable(one, two, spec, stride=1),
        *_separable(two, three, spec, stride=2),
    )


def _head(spec: Model) -> nn.Module:
    return nn.Sequential(*_classify(channels(128, spec), spec))


def _overlay(spec: Model) -> nn.Module:
    three, four, five, six = (channels(base, spec) for base in (128, 256, 512, 1024))
    return nn.Sequential(
        *_separable(three, four, spec, stride=2),
        *_separable(four, five, spec, stride=2),
        *_separable(five, six, spec, stride=2),
        *_classify(six, spec),
    )
