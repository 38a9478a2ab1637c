"""The ensemble: trunk once, then every overlay on its output, then the mean of what they say.

Knows modules and arrays; neither files, ONNX nor where the weights came from. Source: the paper's ensemble, a
horizontal pair (trunk, overlay: "boosted") and the vertical mean over N pairs ("bagged").

The paper takes the mean of logits. An edge whose devices never showed it a class gives that class a logit as
far below the rest as its training has gone, and in a mean of logits that is a veto; a probability of zero is
only one vote. So the mean of probabilities is the default (docs/results/demo.md has both).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from emo import models
from emo.config import Model
from emo.errors import ExportError, ModelError

DType = Literal["uint8", "float32"]
Combine = Literal["probabilities", "logits"]


class Ensemble(nn.Module):
    """images (N, C, ...) of `dtype` -> logits (N, classes), probabilities (N, classes), both float32.

    Takes the images as they are in the dataset: the normalisation, (images - mean) / std, is inside. Always in
    eval mode (batch norm uses its running statistics), and puts the modules that it is given into eval mode too.
    With `combine="probabilities"` the logits are the logarithms of the mean probabilities.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        trunk: nn.Module,
        overlays: Sequence[nn.Module],
        mean: np.ndarray,
        std: np.ndarray,
        dtype: DType = "uint8",
        combine: Combine = "probabilities",
    ) -> None:
        """`mean`, `std`: (C,), in the units of the images. Raises ExportError on no overlay or an unusable scale."""
        super().__init__()
        if not overlays:
            raise ExportError("an ensemble needs the overlay of one edge at least; none has arrived")
        if dtype not in {"uint8", "float32"}:
            raise ExportError(f"images are {dtype}; a model can be exported for uint8 or float32")
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ExportError(f"mean {mean.shape} and std {std.shape} must both be (C,), one value a channel")
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise ExportError(f"mean {mean} and std {std} must be finite, and std above zero")
        self.dtype: DType = dtype
        self.combine: Combine = combine
        self.trunk = trunk
        self.overlays = nn.ModuleList(overlays)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        per_channel = (-1, *[1] * (images.ndim - 2))
        normalised = (images.float() - self.mean.view(per_channel)) / self.std.view(per_channel)
        split = self.trunk(normalised)
        each = torch.stack([overlay(split) for overlay in self.overlays])
        if self.combine == "logits":
            logits = each.mean(0)
        else:
            logits = torch.logsumexp(torch.log_softmax(each, 2), 0) - math.log(len(self.overlays))
        return logits, torch.softmax(logits, 1)


def boosted(
    trunk: nn.Module, overlay: nn.Module, mean: np.ndarray, std: np.ndarray, dtype: DType = "uint8"
) -> Ensemble:
    """The horizontal pair: an ensemble of one overlay."""
    return Ensemble(trunk, [overlay], mean, std, dtype)


def build(
    spec: Model,
    weights: Mapping[str, np.ndarray],
    overlays: Mapping[str, Mapping[str, np.ndarray]],
    mean: np.ndarray,
    std: np.ndarray,
    dtype: DType = "uint8",
    combine: Combine = "probabilities",
) -> Ensemble:
    """The bagged ensemble of the global `weights` and of each edge's overlay, edges in the order of their names.

    Raises ExportError naming the edge and the difference: arrays of another network, split or number of classes,
    or values that are not finite.
    """
    network = models.network(spec, seed=0)
    _fill(network, weights, "the global model")
    members = []
    for edge in sorted(overlays):
        members.append(models.overlay(spec, seed=0))
        _fill(members[-1], overlays[edge], f"the overlay of edge {edge}")
    if mean.shape != spec.input[:1]:
        raise ExportError(
            f"mean has {mean.shape} values, model.input {list(spec.input)} asks for one a channel"
        )
    return Ensemble(network.trunk, members, mean, std, dtype, combine)


def _fill(module: nn.Module, arrays: Mapping[str, np.ndarray], whose: str) -> None:
    try:
        models.load(module, arrays)
    except ModelError as error:
        raise ExportError(
            f"{whose}: {error}. Was it trained with this cloud's `model:` (name, width, norm, input, classes)?"
        ) from error
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ExportError(f"{whose}: {broken[0]} holds NaN or infinity; its training has diverged")
