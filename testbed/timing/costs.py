"""What a split network costs: FLOPs, bytes, memory of a training step. Measured on the modules themselves."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from emo.config import Model
from emo.models import split_network
from emo.models.split_network import inference

_FLOAT = 4  # bytes
BACKWARD = 2  # times the forward FLOPs: gradients of the inputs and of the weights (Kaplan et al. 2020, section 2.1)


@dataclass(frozen=True)
class Part:
    """One of trunk, head, overlay. `flops`: forward, a sample. `bytes`: its whole state as it travels in fp32, buffers
    too. `saved`: bytes a sample that the forward pass keeps for the backward pass. `weights`: bytes of parameters."""

    flops: int
    parameters: int
    bytes: int
    saved: int

    @property
    def weights(self) -> int:
        return _FLOAT * self.parameters

    def __add__(self, other: "Part") -> "Part":
        return Part(
            self.flops + other.flops,
            self.parameters + other.parameters,
            self.bytes + other.bytes,
            self.saved + other.saved,
        )


@dataclass(frozen=True)
class Costs:
    """`split`: bytes of one sample's split activation in fp32."""

    trunk: Part
    head: Part
    overlay: Part
    split: int


@lru_cache(maxsize=32)
def of(spec: Model) -> Costs:
    """The costs of `spec`'s three parts. Raises ModelError as emo.models.split_network does."""
    net, overlay = split_network.network(spec, 0), split_network.overlay(spec, 0)
    split = split_network.split_shape(spec)
    return Costs(
        trunk=part(net.trunk, spec.input),
        head=part(net.head, split),
        overlay=part(overlay, split),
        split=_FLOAT * torch.Size(split).numel(),
    )


def part(module: nn.Module, shape: tuple[int, ...]) -> Part:
    state = sum(array.nbytes for array in split_network.weights(module).values())
    return Part(flops(module, shape), parameters(module), state, saved(module, shape))


def parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def flops(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Forward FLOPs for one sample of `shape`, a multiply-add being two: convolutions, matrix products and attention,
    as torch counts them. Norms, activations and pooling, a few per cent, are left out.

    The backward pass is taken as `BACKWARD` times this: torch 2.13's own count of it is six times too high where
    convolutions are grouped.
    """
    with inference(module), FlopCounterMode(display=False) as counter:
        module(torch.zeros(2, *shape))
    return int(counter.get_total_flops()) // 2


def saved(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes a sample that a training step keeps between forward and backward: what autograd saves, each storage
    once, without the parameters."""
    batch, known = 2, {each.untyped_storage().data_ptr() for each in module.parameters()}
    kept: dict[int, torch.Tensor] = {}  # the tensors too: a freed one's address may come again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(torch.zeros(batch, *shape))
    for buffer, before in buffers:  # batch norm has moved them
        buffer.copy_(before)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) // batch


def memory(net: Part, batch_size: int, momentum: bool) -> int:
    """Bytes of a training step of `net`: weights, gradients, the received weights kept for the update, momentum, and
    what one batch saves; a half more of that for the gradients that pass through the layers."""
    copies = 4 if momentum else 3
    return copies * net.weights + batch_size * net.saved * 3 // 2
