"""What the processes of one training say to each other (torch.distributed: NCCL between GPUs, gloo between CPUs).

Knows ranks, tensors and modules. Knows no optimizer, no cache, no message and no MQTT. Each function here but
`world` is called by all ranks, in the same order.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edge_app.overlay.augment import Rows
from emo import seeds
from emo.errors import ConfigError, EmoError

_TIMEOUT = timedelta(
    minutes=5
)  # a rank that is silent for so long is lost; torch.compile takes its first step's
_DIMS = 8  # of activations


class Command(IntEnum):
    """What rank 0 asks for. IDLE: nothing, so that the others know that it is there."""

    IDLE, STEP, STOP = range(3)


class World(NamedTuple):
    """`rank` of `size` processes, `local` of those on this machine."""

    rank: int
    size: int
    local: int

    def device(self) -> str:
        """Where this rank computes: "cpu", or a GPU of its own. Raises ConfigError where there are too few of them."""
        if not torch.cuda.is_available():
            return "cpu"
        if self.local >= torch.cuda.device_count():
            raise ConfigError(
                f"rank {self.local} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                "start torchrun with --nproc-per-node that many"
            )
        return f"cuda:{self.local}"

    def shares(self, samples: int) -> list[tuple[int, int]]:
        """Where the part of each rank begins and ends; rank 0 has one of the largest."""
        each, more = divmod(samples, self.size)
        return list(pairwise(rank * each + min(rank, more) for rank in range(self.size + 1)))


def world(environ: Mapping[str, str] = os.environ) -> World | None:
    """Who torchrun says we are; None for a process that trains alone. Raises ConfigError."""
    if environ.get("WORLD_SIZE", "1") == "1":
        return None
    try:
        found = World(*(int(environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE is set, but not by torchrun: {error}; unset it, or use torchrun"
        ) from error
    if not 0 <= found.rank < found.size or found.local < 0:
        raise ConfigError(f"RANK and WORLD_SIZE do not fit each other: {found}")
    if not dist.is_available():
        raise ConfigError("this torch is built without torch.distributed: start the edge without torchrun")
    return found


def join(world: World) -> None:
    """Returns when all ranks are there. Raises EmoError when they do not come."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _talking():
        dist.init_process_group(backend, timeout=_TIMEOUT, rank=world.rank, world_size=world.size)


def leave() -> None:
    """Harmless twice, and needed after an error too: a process that ends in a group aborts."""
    if dist.is_initialized():
        dist.destroy_process_group()


def say(command: Command, *values: int) -> None:
    """From rank 0 to all. Raises EmoError when one is gone."""
    with _talking():
        dist.broadcast(_header(command, *values), 0)


def deal(world: World, rows: Rows) -> None:
    """From rank 0: the next step, to each rank its part of `rows`. Raises EmoError when one is gone."""
    shape = rows.activations.shape
    say(Command.STEP, len(rows.labels), rows.weights is not None, rows.seed, *shape)
    with _talking():
        sent = [
            dist.isend(piece, rank)
            for rank, (start, end) in enumerate(world.shares(shape[0]))
            if rank > 0 and end > start
            for piece in _pieces(rows.part(start, end))
        ]
        for request in sent:
            if request is not None:
                request.wait()


def receive(world: World, device: torch.device) -> tuple[Rows, int] | None:
    """The other end of `deal`: this rank's part, and how many samples there are in all; None once rank 0 says STOP."""
    header = _header(Command.IDLE)
    while header[0] == Command.IDLE:
        with _talking():
            dist.broadcast(header, 0)
    if header[0] == Command.STOP:
        return None
    kinds, weighted, seed, total, *dims = header[1:].tolist()
    start, end = world.shares(total)[world.rank]
    n = end - start
    activations = torch.empty(n, *(size for size in dims if size), device=device)
    labels = torch.empty(kinds, n, dtype=torch.int64, device=device)
    weights = torch.empty(kinds, n, device=device) if weighted else None
    rows = Rows(activations, labels, weights, seed=seeds.of(seed, world.rank))
    with _talking():
        for piece in _pieces(rows) if n else ():
            dist.recv(piece, 0)
    return rows, total


def share_state(module: nn.Module, *, mine: bool) -> None:
    """All ranks have the parameters and buffers of rank 0, whose are `mine`. One message a dtype."""
    state = [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
    for dtype in dict.fromkeys(tensor.dtype for tensor in state):
        group = [tensor for tensor in state if tensor.dtype == dtype]
        flat = _flat(group)
        with _talking():
            dist.broadcast(flat, 0)
        if not mine:
            for tensor, piece in zip(group, _split(flat, group), strict=True):
                tensor.copy_(piece)


def add_up(module: nn.Module, each: Tensor, start: int, total: int) -> Tensor:
    """On rank 0 the sums of all ranks' gradients are in place, and the cross entropies (K, total) returned; `each`
    (K, n) are those of this rank's samples, from `start` on. On other ranks what is returned means nothing."""
    losses = each.new_zeros(len(each), total)
    losses[:, start : start + each.shape[1]] = each
    parameters = [p for p in module.parameters() if p.requires_grad]
    all_of_it = [losses, *(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)]
    flat = _flat(all_of_it)
    with _talking():
        dist.reduce(flat, 0)
    losses, *gradients = _split(flat, all_of_it)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is not None:  # it has a part in the result: on this rank as on all
            parameter.grad = gradient
    return losses


def _header(command: Command, *values: int) -> Tensor:
    """int64 (4 + _DIMS,) on the CPU: the command, K, whether there are weights, the seed, the shape of all activations."""
    if len(values) > 3 + _DIMS:
        raise EmoError(f"activations of {len(values) - 3} dims; processes exchange {_DIMS} at most")
    return torch.tensor([command, *values] + [0] * (3 + _DIMS - len(values)), dtype=torch.int64)


def _pieces(rows: Rows) -> list[Tensor]:
    pieces = [rows.activations, rows.labels, *([] if rows.weights is None else [rows.weights])]
    return [piece.contiguous() for piece in pieces]


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    pieces = torch.split(flat, [tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


@contextmanager
def _talking() -> Iterator[None]:
    """What torch says of a broken connection or a silent rank, as EmoError."""
    try:
        yield
    except RuntimeError as error:
        why = re.sub(r"^\[\S*\] ", "", str(error)).partition(". ")[0]  # after gloo's own line of source
        raise EmoError(f"a process that trains with this one is gone or does not answer ({why})") from error
