"""The ensemble: trunk once, then every member on its output, then the weighted mean of their answers.

Source: the paper's ensemble, a horizontal pair (trunk, overlay: "boosted") and the vertical mean over N pairs ("bagged").

A member is what takes the trunk's output to logits: an edge's overlay, or the head of the FL model itself. The parts
of a run go by the names `trunk`, `head` and `overlay-EDGE`.

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

from cloud_app.aggregation import exact_mean
from cloud_app.result import OVERLAY
from emo.config import Model
from emo.data.dataset import Dataset
from emo.errors import ExportError, ModelError, UpdateRefused
from emo.models import split_network
from emo.models.state import unsound
from emo.wire.compression import Weights

DType = Literal["uint8", "float32"]
Combine = Literal["probabilities", "logits"]

TRUNK, HEAD = "trunk", "head"
FL = "FL model"


def dtype(dataset: Dataset) -> DType:
    """Of the images that a model of this data takes."""
    return "uint8" if dataset.images.dtype == "uint8" else "float32"


class Ensemble(nn.Module):
    """images (N, C, ...) of `dtype` -> logits (N, classes), probabilities (N, classes), both float32; with `answers`, whose
    own they are, member_probabilities (N, answers, classes), too.

    Takes the images as they are in the dataset: the normalisation, (images - mean) / std, is inside. Always in
    eval mode (batch norm uses its running statistics), and puts the modules that it is given into eval mode too.
    With `combine="probabilities"` the logits are the logarithms of the mean probabilities.
    """

    mean: torch.Tensor
    std: torch.Tensor
    shares: torch.Tensor

    def __init__(
        self,
        trunk: nn.Module,
        members: Sequence[nn.Module],
        mean: np.ndarray,
        std: np.ndarray,
        dtype: DType = "uint8",
        combine: Combine = "probabilities",
        shares: Sequence[float] | None = None,
        names: Sequence[str] = (),
        beside: nn.Module | None = None,
    ) -> None:
        """`mean`, `std`: (C,), in the units of the images. `shares`: of each member in the mean, above zero, in any
        scale; equal when left out. `names`: of the members, where their own answers are wanted; then `beside` is a module that
        answers for itself, too, without a say in the mean. Raises ExportError on no member, or an unusable scale or share."""
        super().__init__()
        if not members:
            raise ExportError("an ensemble needs the overlay of one edge at least; none has arrived")
        if dtype not in {"uint8", "float32"}:
            raise ExportError(f"images are {dtype}; a model can be exported for uint8 or float32")
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ExportError(f"mean {mean.shape} and std {std.shape} must both be (C,), one value a channel")
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise ExportError(f"mean {mean} and std {std} must be finite, and std above zero")
        shares = [1.0] * len(members) if shares is None else [float(share) for share in shares]
        if len(shares) != len(members) or not all(0 < share < math.inf for share in shares):
            raise ExportError(f"shares {shares}: {len(members)} members need one each, finite and above zero")
        self.dtype: DType = dtype
        self.combine: Combine = combine
        self.trunk = trunk
        self.members = nn.ModuleList(members)
        self.beside = beside
        self.answers = tuple(names) if beside is None else (FL, *names)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        total = sum(shares)
        self.register_buffer("shares", torch.tensor([share / total for share in shares]))
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        split = self.split(images)
        own = self._logits(split)
        logits = combined(own, self.shares, self.combine)
        if not self.answers:
            return logits, torch.softmax(logits, 1)
        if self.beside is not None:
            own = torch.cat([self.beside(split.clone())[None], own])
        return logits, torch.softmax(logits, 1), torch.softmax(own, 2).transpose(0, 1)

    def member_logits(self, images: torch.Tensor) -> torch.Tensor:
        """The members' own logits (members, N, classes)."""
        return self._logits(self.split(images))

    def _logits(self, split: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(split.clone()) for member in self.members])  # one may work in place

    def split(self, images: torch.Tensor) -> torch.Tensor:
        """The trunk's output (N, ...), which all members share."""
        per_channel = (-1, *[1] * (images.ndim - 2))
        normalised = (images.float() - self.mean.view(per_channel)) / self.std.view(per_channel)
        output: torch.Tensor = self.trunk(normalised)
        return output


def combined(logits: torch.Tensor, shares: torch.Tensor, combine: Combine) -> torch.Tensor:
    """The members' logits (members, N, classes), with `shares` (members,) that sum to one -> logits (N, classes)."""
    shares = shares.view(-1, 1, 1)
    if combine == "logits":
        return (logits * shares).sum(0)
    return torch.logsumexp(torch.log_softmax(logits, 2) + shares.log(), 0)


def parts(weights: Weights, overlays: Mapping[str, Weights]) -> dict[str, Weights]:
    """The FL model's `weights`, cut into trunk and head, and each edge's overlay, edges in the order of their names.

    Raises ExportError where `weights` hold an array of neither.
    """
    cut: dict[str, dict[str, np.ndarray]] = {TRUNK: {}, HEAD: {}}
    for name, array in weights.items():
        part, _, rest = name.partition(".")
        if part not in cut or not rest:
            raise ExportError(f"the global model: {name} belongs neither to its trunk nor to its head")
        cut[part][rest] = array
    return {**cut, **{OVERLAY + edge: overlays[edge] for edge in sorted(overlays)}}


def misfit(like: Weights, weights: Weights) -> str:
    """Why `weights` cannot be what training has made of a network whose weights were `like`; empty where they can."""
    try:
        exact_mean.fits(like, weights)
    except UpdateRefused as error:
        return str(error)
    for name, array in weights.items():
        if (~(np.abs(array) < exact_mean.MAX_WEIGHT) & (np.abs(like[name]) < exact_mean.MAX_WEIGHT)).any():
            return f"{name} has NaN, infinity or a value of {exact_mean.MAX_WEIGHT:.0f} or more"
    return unsound(like, weights)


def misfits(spec: Model, overlays: Mapping[str, Weights]) -> dict[str, str]:
    """The `overlays` that cannot be overlays of `spec`, with the reason. Raises ModelError."""
    like = split_network.weights(split_network.overlay(spec, seed=0)) if overlays else {}
    reasons = {name: misfit(like, weights) for name, weights in overlays.items()}
    return {name: why for name, why in reasons.items() if why}


def build(
    spec: Model,
    parts: Mapping[str, Weights],
    mean: np.ndarray,
    std: np.ndarray,
    dtype: DType = "uint8",
    combine: Combine = "probabilities",
    shares: Mapping[str, float] | None = None,
    *,
    answers: bool = False,
) -> Ensemble:
    """The ensemble of a run's `parts`. `shares`: its members with their shares, in this order; left out, all
    overlays with equal ones. `answers`: each member's own ones, too, and where the FL model's head is among the parts, its.

    Raises ExportError naming the part and the difference: arrays of another network, split or number of classes,
    values that are not finite, or a part that is missing.
    """
    if shares is None:
        shares = {part: 1.0 for part in parts if part.startswith(OVERLAY)}
    if mean.shape != spec.input[:1]:
        raise ExportError(f"mean has {mean.shape} values, model.input {list(spec.input)} asks for one a channel")
    network = split_network.network(spec, seed=0)
    members = []
    beside = [HEAD] if answers and HEAD in parts and HEAD not in shares else []
    for part in (TRUNK, *shares, *beside):
        if part not in parts:
            raise ExportError(f"this run has no {part}; its parts are {', '.join(parts) or 'none'}")
        if part == TRUNK:
            module = network.trunk
        else:
            module = network.head if part == HEAD else split_network.overlay(spec, seed=0)
            if part in shares:
                members.append(module)
        _fill(module, parts[part], described(part))
    names = [_who_answers(part) for part in shares] if answers else []
    head = network.head if beside else None
    return Ensemble(network.trunk, members, mean, std, dtype, combine, list(shares.values()), names, head)


def described(part: str) -> str:
    """A part in words, for messages."""
    if part.startswith(OVERLAY):
        return f"the overlay of edge {part.removeprefix(OVERLAY)}"
    return f"the {part} of the global model"


def _who_answers(part: str) -> str:
    return FL if part == HEAD else f"pair {part.removeprefix(OVERLAY)}"


def _fill(module: nn.Module, arrays: Weights, whose: str) -> None:
    start = split_network.weights(module)
    try:
        split_network.load(module, arrays)
    except ModelError as error:
        raise ExportError(
            f"{whose}: {error}. Was it trained with this cloud's `model:` (name, width, norm, input, classes)?"
        ) from error
    broken = unsound(start, arrays)
    if broken:
        raise ExportError(f"{whose}: {broken}; its training has diverged")
