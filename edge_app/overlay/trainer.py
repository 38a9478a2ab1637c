"""Trains an overlay by SGD on replayed activations (paper, section IV-A). One thread at a time: the one that trains."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edge_app.overlay.augment import Augment, Rows
from edge_app.overlay.checkpoint import State, finite
from emo.config import Overlay
from emo.errors import ModelError
from emo.local_sgd import Sgd
from emo.models.split_network import inference
from emo.models.state import tied
from emo.seeds import Draws

_PATIENCE = 10  # steps in a row that are refused before the weights are taken to be beyond help


class Gradients(NamedTuple):
    """Cross entropies (K, N), NaN where a label has no class; whether they and the gradient are finite; whether buffers
    have stayed finite, too. The gradients themselves are in place."""

    losses: Tensor
    sound: Tensor
    good: Tensor


class Descent:
    """SGD on `module`, in place, on `device`: `gradients`, then `step` or `restore`. On several GPUs every rank has one
    (multi_gpu.py)."""

    def __init__(self, module: nn.Module, settings: Overlay, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.module = module.to(self.device).train()
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.optimizer = Sgd(self.parameters.values(), settings.lr, settings.momentum, settings.weight_decay)
        self._settings = settings
        self._call = forward(module, settings, self.device)

    def gradients(self, rows: Rows, lr: float | None) -> Gradients:
        """Clipped. `lr`: None where no step will follow. Raises ModelError where `compile` cannot be had."""
        if lr is not None:
            self.optimizer.lr = lr
        self._buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]  # batch norm moves them
        self.optimizer.zero_grad()
        losses = self._backward(rows, len(rows.activations))
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        finite = [norm.isfinite(), *((now.isfinite() | ~old.isfinite()).all() for now, old in self._buffers)]
        losses, norm, kept = self._agreed(losses, norm, torch.stack(finite).all())
        nn.utils.clip_grads_with_norm_(self.parameters.values(), self._settings.clip, norm)
        sound = losses.isfinite().all() & norm.isfinite()
        return Gradients(losses, sound, sound & kept)

    def step(self) -> None:
        self.optimizer.step()

    def restore(self) -> None:
        """Buffers are as they were before `gradients`."""
        for buffer, before in self._buffers:
            buffer.copy_(before)

    def put(self, arrays: Mapping[str, Tensor]) -> None:
        """Weights and buffers from `State.arrays`, and no momentum."""
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                value.copy_(arrays[f"weights/{name}"])
        self.optimizer.momenta.clear()

    def _backward(self, rows: Rows, total: float) -> Tensor:
        try:
            return backward(self._call, rows, total)
        except RuntimeError as error:
            if not self._settings.compile:
                raise
            raise ModelError(f"overlay.compile: a step fails; set it to false. {error}") from error

    def _agreed(self, losses: Tensor, norm: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What all ranks go by, where there are several."""
        return losses, norm, kept


class Trainer:
    """Trains `module` in place, on `device`, with cross entropy and SGD as `settings` say.

    `weights` gives the running average of the weights (Polyak), which moves by 1 - `settings.average` a step, faster
    in the beginning: at a constant rate the last step's own weights scatter by a point of accuracy.
    `steps` counts the steps that were applied, `refused_steps` those that were not, `rollbacks` how often it went back
    to `kept`: the state after every `settings.checkpoint_steps` steps, before the first of them, or the one loaded.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Overlay,
        device: torch.device | str = "cpu",
        descent: Callable[[nn.Module, Overlay, torch.device | str], Descent] = Descent,
    ) -> None:
        self._descent = descent(module, settings, device)
        self._device, self._module = self._descent.device, self._descent.module
        self._parameters = self._descent.parameters
        self._settings = settings
        self._augment = Augment(settings)
        self._tied = tied(self._module)
        self._mean = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._refused_in_a_row = 0
        self.steps = 0
        self.refused_steps = 0
        self.rollbacks = 0
        self.kept = self.state()

    def step(
        self,
        batches: Sequence[tuple[Tensor, Tensor]],
        weights: Sequence[float] | None = None,
        progress: float = 0.0,
    ) -> list[float]:
        """One step on all of `batches`, each (N_i, ...) float32 and (N_i,) int64; returns their mean losses.

        What is descended is the mean over all samples, each sample's loss times its batch's weight; what is returned
        has no weights in it. `progress`: the share of the run that is over, 0 to 1, for `settings.schedule`.

        Not applied when a loss or a gradient is not finite, a buffer no longer is, or a label has no class here: weights,
        buffers and momentum stay, it is counted, and the losses returned are NaN. After ten of these in a row, or once the
        weights themselves are not finite, weights and mean go back to `kept` and momentum starts from zero.
        Raises ModelError where `flip` or `compile` cannot be had.
        """
        rows = self._augment(self._rows(batches, weights))
        losses, _, good = self._descent.gradients(rows, self._rate(progress))
        mixed = losses[0] if len(losses) == 1 else torch.lerp(losses[1], losses[0], rows.share)
        means = [part.mean() for part in torch.split(mixed, [len(labels) for _, labels in batches])]
        *means_of_batches, applied = torch.stack(
            [*means, good.to(mixed.dtype)]
        ).tolist()  # all that waits for the device
        if not applied:
            self._descent.restore()
            self._refuse()
            return [math.nan] * len(means)
        self._descent.step()
        self._applied()
        return means_of_batches

    def sound(self, batch: tuple[Tensor, Tensor]) -> bool:
        """Whether loss and gradient of `batch` alone are finite. Nothing of the training changes."""
        try:
            return bool(self._descent.gradients(self._rows([batch], None), None).sound.item())
        except ValueError:  # batch norm takes no single row
            return True
        finally:
            self._descent.restore()

    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """(mean cross entropy, share of right answers) of the averaged weights in eval mode, over the samples of
        `batches`; NaN for none. Nothing of the training changes. A label without a class is torch's error."""
        count, sums = 0, [torch.zeros(2, device=self._device)]
        state = self._mean | {name: buffer.clone() for name, buffer in self._module.named_buffers()}
        with inference(self._module):
            for activations, labels in batches:
                x = activations.to(self._device, torch.float32, copy=True)  # the module may work in place
                y = labels.to(self._device, torch.int64)
                logits = torch.func.functional_call(self._module, state, (x,))
                loss = functional.cross_entropy(logits, y, reduction="sum")
                sums.append(torch.stack([loss, (logits.argmax(1) == y).sum()]))
                count += len(y)
        loss, right = torch.stack(sums).sum(0).tolist()
        return (loss / count, right / count) if count else (math.nan, math.nan)

    def weights(self) -> dict[str, NDArray[np.generic]]:
        """The whole state: averaged parameters, under all their names, and buffers as they are. Name -> array, copied."""
        state = self._module.state_dict() | self._mean
        state |= {name: state[first] for name, first in self._tied.items()}
        return {name: value.detach().cpu().numpy().copy() for name, value in state.items()}

    def state(self) -> State:
        """All that the next steps depend on, copied, on the overlay's device: `load` it, and they give the same bits."""
        arrays = {f"weights/{name}": value for name, value in self._module.state_dict().items()}
        arrays |= {f"mean/{name}": value for name, value in self._mean.items()}
        for name, parameter in self._parameters.items():
            momentum = self._descent.optimizer.momenta.get(parameter)
            if momentum is not None:
                arrays[f"momentum/{name}"] = momentum
        copies = {name: value.detach().clone() for name, value in arrays.items()}
        return State(self.steps, copies, self._augment.state())

    def load(self, state: State) -> None:
        """Go on from `state`, of a trainer of the same module. Raises ModelError, before anything changes, when it
        is not that."""
        if misfit := state.misfit(self.kept):
            raise ModelError(f"a checkpoint of another overlay: {misfit}")
        self._augment.resume(state.random)
        self._put(state)
        for name, parameter in self._parameters.items():
            momentum = state.arrays.get(f"momentum/{name}")
            if momentum is not None:
                self._descent.optimizer.momenta[parameter] = momentum.to(self._device, copy=True)
        self.kept = state

    def _rows(self, batches: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float] | None) -> Rows:
        activations = torch.cat([x.to(self._device, torch.float32) for x, _ in batches])
        labels = torch.cat([y.to(self._device, torch.int64) for _, y in batches])
        if weights is None or all(weight == 1.0 for weight in weights):
            return Rows(activations, labels[None])
        counts = [len(y) for _, y in batches]
        of_samples = torch.from_numpy(np.repeat(np.asarray(weights, np.float32), counts)).to(self._device)
        return Rows(activations, labels[None], of_samples[None])

    def _rate(self, progress: float) -> float:
        rate = self._settings.lr
        if self._settings.schedule == "constant":
            return rate
        cosine = (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
        return rate * (0.01 + 0.99 * cosine)

    def _applied(self) -> None:
        self.steps += 1
        self._refused_in_a_row = 0
        weight = 1 - min(self._settings.average, self.steps / (self.steps + 9))
        with torch.no_grad():
            for mean, parameter in zip(self._mean.values(), self._parameters.values(), strict=True):
                mean.lerp_(parameter, weight)
        if self.steps % self._settings.checkpoint_steps == 0:
            state = self.state()
            if state.finite(self.kept):
                self.kept = state
            else:
                self._roll_back()

    def _refuse(self) -> None:
        self.refused_steps += 1
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= _PATIENCE or not finite([*self._parameters.values(), *self._mean.values()]):
            self._roll_back()

    def _roll_back(self) -> None:
        """To the weights that were kept. The random numbers do not go back: the same ones would lead to the same end."""
        self._put(self.kept)
        self._refused_in_a_row = 0
        self.rollbacks += 1

    def _put(self, state: State) -> None:
        """Weights, mean and steps as in `state`, no momentum."""
        self._descent.put(state.arrays)
        for name, value in self._mean.items():
            value.copy_(state.arrays[f"mean/{name}"])
        self.steps = state.steps


def forward(module: nn.Module, settings: Overlay, device: torch.device) -> Callable[[Tensor], Tensor]:
    """`module` as a step calls it: compiled where asked for, in bfloat16 where a GPU has it. Logits are float32."""
    call: Callable[[Tensor], Tensor] = torch.compile(module) if settings.compile else module
    if not settings.amp or device.type != "cuda" or not torch.cuda.is_bf16_supported(including_emulation=False):
        return call

    def autocast(activations: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return call(activations).float()

    return autocast


def backward(call: Callable[[Tensor], Tensor], rows: Rows, total: float) -> Tensor:
    """Adds the gradients of the sum over `rows`, divided by `total`: the samples of the whole step.

    Returns the cross entropies (K, N), unweighted; NaN where a label has no class.
    """
    with Draws(rows.activations.device).seeded(rows.seed):
        logits = call(rows.activations)
        classes = logits.shape[1]
        known = (rows.labels >= 0) & (rows.labels < classes)
        labels = rows.labels.clamp(0, classes - 1)  # on a GPU another one would end the process
        if rows.weights is None:
            loss = functional.cross_entropy(logits, labels[0]) * (len(logits) / total)
        else:
            loss = (rows.weights * _cross_entropies(logits, labels)).sum() / total
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no annotations
        return torch.where(known, _cross_entropies(logits.detach(), labels), math.nan)


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([functional.cross_entropy(logits, row, reduction="none") for row in labels])
