"""The overlay: SGD on replayed activations, on the edge (paper, section IV-A).

Knows a module, tensors and the optimizer's settings. Knows no cache, no device id and no message.
One thread at a time: the one that trains.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from emo.config import Overlay


class Trainer:
    """Trains `module` in place, on `device`, with cross entropy and SGD as `settings` has it.

    `weights` gives the running average of the weights (Polyak), which moves by 1 - `settings.average` a step, faster
    in the beginning: at a constant rate the last step's own weights scatter by a point of accuracy.
    `steps` counts the steps that were applied, `refused_steps` those that were not.
    """

    def __init__(self, module: nn.Module, settings: Overlay, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._module = module.to(self._device).train()
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._clip = settings.clip
        self._optimizer = torch.optim.SGD(
            self._parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self._decay = settings.average
        self._mean = [p.detach().clone() for p in self._parameters]
        self.steps = 0
        self.refused_steps = 0

    def step(self, activations: torch.Tensor, labels: torch.Tensor) -> float:
        """One step on `activations` (N, ...) float32 and `labels` (N,) int64; returns the mean loss.

        Not applied when the loss, a gradient or a buffer is not finite, or a label has no class here:
        weights, buffers and momentum stay, it is counted, and the loss returned is NaN.
        """
        activations = activations.to(self._device, torch.float32)
        labels = labels.to(self._device, torch.int64)
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]  # batch norm moves them
        self._optimizer.zero_grad()
        logits = self._module(activations)
        loss = self._backward(logits, labels)
        if not math.isfinite(loss) or not all(buffer.isfinite().all() for buffer, _ in buffers):
            for buffer, before in buffers:
                buffer.copy_(before)
            self.refused_steps += 1
            return math.nan
        self._optimizer.step()
        self.steps += 1
        weight = 1 - min(self._decay, self.steps / (self.steps + 9))
        with torch.no_grad():
            for mean, parameter in zip(self._mean, self._parameters, strict=True):
                mean.lerp_(parameter, weight)
        return loss

    def _backward(self, logits: torch.Tensor, labels: torch.Tensor) -> float:
        """The loss, with its gradients in place, clipped: a batch of one class pulls hard. NaN when either is not finite."""
        if ((labels < 0) | (labels >= logits.shape[1])).any():  # on a GPU they would end the process
            return math.nan
        loss = functional.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no annotations
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip, norm)
        return loss.item() if torch.isfinite(norm) else math.nan

    def weights(self) -> dict[str, NDArray[np.generic]]:
        """The whole state, averaged, and buffers as they are: name -> array, copied, so that later steps do not
        change it."""
        state = self._module.state_dict()
        means = zip(
            (n for n, p in self._module.named_parameters() if p.requires_grad), self._mean, strict=True
        )
        return {name: value.detach().cpu().numpy().copy() for name, value in (state | dict(means)).items()}
