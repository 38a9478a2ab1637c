"""Split networks: a trunk up to the split, a head (the FL model's rest), an overlay on the trunk's output.

The table below is all that is built in; your own network is a `package.module:function` that gives `Parts`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

from emo import user_function
from emo.config import Model
from emo.errors import ModelError
from emo.models.cnn import cnn
from emo.models.layers import Parts
from emo.models.mobilenet import mobilenet6, mobilenet12
from emo.models.vgg import vgg6, vgg11
from emo.seeds import Draws

BUILT_IN: dict[str, Callable[[Model], Parts]] = {
    "vgg6": vgg6,
    "vgg11": vgg11,
    "mobilenet6": mobilenet6,
    "mobilenet12": mobilenet12,
    "cnn": cnn,
}


_USED: WeakSet[nn.Module] = WeakSet()  # modules with weights, and whole parts, that are in a network already


class SplitNetwork(nn.Module):
    """The FL model, (N, *input) -> logits (N, classes). A tap hooks `.trunk`; its output is the split activation."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.trunk(inputs))
        return logits


def parts(spec: Model) -> Parts:
    """The factories of `spec.name`, built in or the user's. ModelError: unknown, not importable, not `Parts`."""
    if spec.name in BUILT_IN:
        return BUILT_IN[spec.name](spec)
    made = user_function.function(spec.name, "model.name", BUILT_IN, ModelError)(spec)
    if not isinstance(made, Parts) or not all(callable(factory) for factory in made):
        raise ModelError(
            f"{spec.name}: must return emo.models.Parts(trunk, head, overlay), three functions "
            f"that build a module; it returned a {type(made).__name__}"
        )
    return made


def network(spec: Model, seed: int) -> SplitNetwork:
    """Trunk and head, in train mode. The same seed gives the same bits; torch's global generator stays untouched.

    Raises ModelError when they do not take a float32 (N, *spec.input), do not give (N, spec.classes), or are modules
    that were given before.
    """
    with Draws().seeded(seed):
        made = parts(spec)
        net = SplitNetwork(_build(made.trunk, spec, "trunk"), _build(made.head, spec, "head"))
        split = _forward(net.trunk, spec.input, spec, "trunk")
        _classify(net.head, split, spec, "head")
    return net


def overlay(spec: Model, seed: int) -> nn.Module:
    """The overlay alone, (N, *split_shape) -> logits (N, classes), in train mode. Otherwise as `network`."""
    split = split_shape(spec)
    with Draws().seeded(seed):
        module = _build(parts(spec).overlay, spec, "overlay")
        _classify(module, split, spec, "overlay")
    return module


def split_shape(spec: Model) -> tuple[int, ...]:
    """Shape of one sample's split activation, e.g. (128, 16, 16). Builds a trunk to find out."""
    with Draws().seeded(0):
        return _forward(_build(parts(spec).trunk, spec, "trunk"), spec.input, spec, "trunk")


def weights(module: nn.Module) -> dict[str, np.ndarray]:
    """Copies of all parameters and buffers by their state_dict names, in its order, as numpy arrays.

    Buffers too: FedAvg averages batch norm's statistics. ModelError for state that numpy has no dtype for.
    """
    return {name: np.array(value.detach().cpu().numpy()) for name, value in _state(module).items()}


def load(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy `arrays` into `module`; all of them or none. ModelError names the first differences.

    Strict: the same names, shapes and dtypes as `weights(module)` gives. Values are not judged (NaN passes).
    """
    state = _state(module)
    wrong = list(islice(_differences(state, arrays), 3))
    if wrong:
        raise ModelError(f"weights do not fit {type(module).__name__}: {'; '.join(wrong)}")
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(torch.tensor(arrays[name]))  # a copy: arrays off a wire are read-only


@contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every submodule is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def _build(factory: Callable[[], nn.Module], spec: Model, part: str) -> nn.Module:
    module = factory()
    if not isinstance(module, nn.Module):
        raise ModelError(f"{spec.name}: its {part} is a {type(module).__name__}, not a torch.nn.Module")
    mine = {module, *(each for each in module.modules() if _own(each))}
    if not mine.isdisjoint(_USED):
        raise ModelError(
            f"{spec.name}: its {part} is, or holds, a module that it gave before, so two networks would share their "
            "weights; build a new one each time: the function and those in Parts are called once a network"
        )
    _USED.update(mine)
    return module


def _own(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _forward(module: nn.Module, shape: tuple[int, ...], spec: Model, part: str) -> tuple[int, ...]:
    """Shape of one output sample, by two samples of zeros."""
    try:
        with inference(module):
            out = module(torch.zeros(2, *shape))
    except Exception as error:  # a user's module may raise anything
        raise ModelError(f"{spec.name}: its {part} does not take samples of shape {shape}: {error}") from error
    if not isinstance(out, torch.Tensor) or out.ndim < 2 or len(out) != 2:
        kind = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ModelError(f"{spec.name}: its {part} must give one tensor (N, ...); for N = 2 it gave {kind}")
    return tuple(out.shape[1:])


def _classify(module: nn.Module, shape: tuple[int, ...], spec: Model, part: str) -> None:
    gives = _forward(module, shape, spec, part)
    if gives != (spec.classes,):
        raise ModelError(
            f"{spec.name}: its {part} gives {gives} for a sample, where model.classes = {spec.classes} "
            f"asks for ({spec.classes},)"
        )


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.dtype not in _DTYPES:
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise ModelError(f"{name}: a {kind} cannot travel as a numpy array; keep it as float32")
    return state


_DTYPES = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
    torch.int64: np.dtype(np.int64),
    torch.int32: np.dtype(np.int32),
    torch.uint8: np.dtype(np.uint8),
    torch.bool: np.dtype(np.bool_),
}


def _differences(state: Mapping[str, torch.Tensor], arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    for name, value in state.items():
        if name not in arrays:
            yield f"{name} is missing"
            continue
        shape, dtype = tuple(value.shape), _DTYPES[value.dtype]
        if arrays[name].shape != shape or arrays[name].dtype != dtype:
            yield f"{name} is {arrays[name].dtype}{arrays[name].shape}, expected {dtype}{shape}"
    for name in arrays:
        if name not in state:
            yield f"{name} is not known here"
