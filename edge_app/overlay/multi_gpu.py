"""Trains one overlay on several GPUs: `torchrun --nproc-per-node N -m edge_app.run --config FILE`.

Rank 0 is the edge: it receives, caches, samples and augments; the average, checkpoints and counts are its own. Each step's
samples go to all ranks, and each computes on a part of them under DistributedDataParallel (DDP), which averages gradients
over ranks: so a part's loss is divided by samples / ranks, and a rank without samples computes one with weight 0. Then
one sum over all ranks of losses, norm and bad buffers has all of them clip, and step or refuse, alike: one process's
step, but for the rounding of sums.

Ranks cannot come to differ. When rank 0's weights come from elsewhere (a new run, a checkpoint, a rollback), or it failed
before the end of a step, the next step begins with its weights, buffers and momentum sent to all.

Batch norm becomes SyncBatchNorm, over the samples of all ranks. That needs CUDA: between CPUs each rank normalises by its
own part, rank 0's statistics are kept, and the curve is not that of one process.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edge_app.overlay.augment import Rows
from edge_app.overlay.trainer import Descent, Gradients, Trainer, forward
from emo import seeds
from emo.config import EdgeConfig, Overlay
from emo.errors import ConfigError, EmoError
from emo.models import split_network

# A rank that is silent for so long is lost; torch.compile takes its first step's.
_TIMEOUT = timedelta(minutes=5)
_BEAT_S = 5.0  # rank 0 is heard of so often while it has nothing to train on
_CLOSE_S = 10.0
_ORDER_BYTES = 1024


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
        part, rest = divmod(samples, self.size)
        return list(pairwise(rank * part + min(rank, rest) for rank in range(self.size + 1)))

    def join(self) -> None:
        """Returns when all ranks are there. Raises EmoError when they do not come."""
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=_TIMEOUT, rank=self.rank, world_size=self.size)
        except RuntimeError as error:
            raise EmoError(_gone(error)) from error


def world(environ: Mapping[str, str] = os.environ) -> World | None:
    """Who torchrun says we are; None for a process that trains alone. Raises ConfigError."""
    if environ.get("WORLD_SIZE", "1") == "1":
        return None
    try:
        world = World(*(int(environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"WORLD_SIZE is set, but not by torchrun: {error}; unset it, or use torchrun") from error
    if not 0 <= world.rank < world.size or world.local < 0:
        raise ConfigError(f"RANK and WORLD_SIZE do not fit each other: {world}")
    if not dist.is_available():
        raise ConfigError("this torch is built without torch.distributed: start the edge without torchrun")
    return world


class _Shared(Descent):
    """One rank's part in the steps of all."""

    def __init__(self, world: World, module: nn.Module, *args: Any) -> None:
        if torch.cuda.is_available():
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        super().__init__(module, *args)
        self._world = world

    def begin(self) -> None:
        """All ranks go on from rank 0's weights and buffers, which DDP sends when it is made, and from its momentum."""
        # A parameter that has no part in the result stays as it is, as in one process.
        parallel = DistributedDataParallel(self.module, find_unused_parameters=True)
        self._call = forward(parallel, self._settings, self.device)
        for parameter in self.parameters.values():
            dist.broadcast(self.optimizer.momenta.setdefault(parameter, torch.zeros_like(parameter)), 0)

    def _backward(self, rows: Rows, total: float) -> Tensor:
        rank, count = self._world.rank, len(rows.activations)
        start, end = self._world.shares(count)[rank]
        part = replace(rows.part(start, end), seed=seeds.of(rows.seed, rank) if rank else rows.seed)
        if start == end:
            part = replace(rows.part(0, 1), weights=torch.zeros(len(rows.labels), 1, device=self.device))
        losses = rows.activations.new_zeros(len(rows.labels), count)
        losses[:, start:end] = super()._backward(part, total / self._world.size)[:, : end - start]
        return losses

    def _agreed(self, losses: Tensor, norm: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norm = norm if self._world.rank == 0 else torch.zeros_like(norm)
        sums = torch.cat([losses.flatten(), torch.stack([norm, ~kept])])
        dist.all_reduce(sums)
        return sums[:-2].view_as(losses), sums[-2], sums[-1] == 0


class Leader(AbstractContextManager["Leader"]):
    """Rank 0's link to the others. `on_lost` is called, from any thread, once one of them is gone or silent.

    Leaving the context ends the other ranks, and raises EmoError where one was lost. Raises EmoError when the others
    do not come.
    """

    def __init__(self, world: World, on_lost: Callable[[], None], beat_s: float = _BEAT_S) -> None:
        self.world, self._on_lost, self._beat_s = world, on_lost, beat_s
        self._lost = ""
        self._turn = threading.Lock()  # one order at a time, from its first byte to the last answer
        self._closing = threading.Event()
        self.leads: Descent | None = None  # the one that the other ranks have a part in
        world.join()
        self._beating = threading.Thread(target=self._beat, name="ranks", daemon=True)
        self._beating.start()

    def trainer(self, module: nn.Module, settings: Overlay, device: torch.device | str = "cpu") -> Trainer:
        """`Trainer(module, settings, device)` with all ranks behind it. Its `step` also raises EmoError, after it has
        called `on_lost`, when a rank is lost."""
        return Trainer(module, settings, device, lambda *args: _Led(self, *args))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """For one order, and what all ranks do with it. Raises EmoError, now and from then on, when that fails: the others
        wait in the middle of it, and it cannot be taken back."""
        with self._turn:
            if self._lost:
                raise EmoError(self._lost)
            try:
                yield
            except Exception as error:
                self._lost = (
                    f"training on {self.world.size} processes broke off: {_gone(error) or error}. This edge ends; "
                    "started again by torchrun, it goes on from its checkpoint"
                )
                self._on_lost()
                raise EmoError(self._lost) from error

    def close(self) -> None:
        """The others end. Harmless twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._beating.join(_CLOSE_S)
        if self._turn.acquire(timeout=_CLOSE_S):  # else a step hangs, and the process is ending anyway
            self._turn.release()
            with suppress(EmoError), self.turn():
                _say("stop")
            _leave()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if self._lost and kind is None:
            raise EmoError(self._lost)

    def _beat(self) -> None:
        while not (self._closing.wait(self._beat_s) or self._lost):
            with suppress(EmoError), self.turn():
                _say("wait")


class _Led(_Shared):
    """Rank 0's own part: it gives the orders."""

    def __init__(self, leader: Leader, *args: Any) -> None:
        super().__init__(leader.world, *args)
        self._leader = leader
        self._alike = False  # whether the ranks that follow this descent have the same

    def gradients(self, rows: Rows, lr: float | None) -> Gradients:
        if rows.weights is None:
            rows = replace(rows, weights=torch.ones_like(rows.labels, dtype=torch.float32))
        with self._leader.turn():
            if not (self._alike and self._leader.leads is self):
                _say("begin")
                self.begin()
                self._leader.leads = self
            self._alike = False  # until they have ended the step alike
            _say("step", lr=lr, seed=rows.seed, shape=rows.activations.shape, kinds=len(rows.labels))
            _spread(rows)
            return super().gradients(rows, lr)

    def step(self) -> None:
        super().step()
        self._alike = True

    def restore(self) -> None:
        super().restore()
        self._alike = True

    def put(self, arrays: Mapping[str, Tensor]) -> None:
        super().put(arrays)
        self._alike = False


def worker(config: EdgeConfig, world: World) -> None:
    """A rank above 0: obeys until rank 0 says that it is over. A signal to all of them is for rank 0 to act on.

    Raises EmoError when rank 0 is gone.
    """
    torch.set_num_threads(config.threads)
    device = torch.device(world.device())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    shared = _Shared(world, split_network.overlay(config.model, config.overlay.seed), config.overlay, device)
    world.join()
    try:
        while (order := _hear())["do"] != "stop":
            if order["do"] == "begin":
                shared.begin()
            elif order["do"] == "step":
                gradients = shared.gradients(_hear_rows(order, device), order["lr"])
                if order["lr"] is not None and gradients.good.item():
                    shared.step()
                else:
                    shared.restore()
    except RuntimeError as error:
        if why := _gone(error):
            raise EmoError(why) from error
        raise
    finally:
        _leave()


def _leave() -> None:
    """Needed after an error too: a process that ends in a group aborts."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _say(do: str, **order: Any) -> None:
    """From rank 0 to all. "wait" says only that it is there."""
    text = json.dumps({"do": do, **order}).encode().ljust(_ORDER_BYTES)
    dist.broadcast(torch.frombuffer(bytearray(text), dtype=torch.uint8), 0)


def _hear() -> Any:
    text = torch.empty(_ORDER_BYTES, dtype=torch.uint8)
    dist.broadcast(text, 0)
    return json.loads(bytes(text.tolist()))


def _hear_rows(order: Any, device: torch.device) -> Rows:
    shape, labels = order["shape"], (order["kinds"], order["shape"][0])
    rows = Rows(
        torch.empty(shape, device=device),
        torch.empty(labels, dtype=torch.int64, device=device),
        torch.empty(labels, device=device),
        seed=order["seed"],
    )
    _spread(rows)
    return rows


def _spread(rows: Rows) -> None:
    """All samples from rank 0 to all ranks, which pass them on: as fast as to each its part."""
    for tensor in (rows.activations, rows.labels, rows.weights):
        assert tensor is not None
        dist.broadcast(tensor.contiguous(), 0)


def _gone(error: Exception) -> str:
    """What is wrong, where torch cannot talk to another rank; empty for another error."""
    text = str(error)
    if not isinstance(error, dist.DistError) and "gloo" not in text.lower():
        return ""
    why = re.sub(r"^.*?\[\S*\] ", "", text).partition(". ")[0]  # after gloo's own line of source
    return f"a process that trains with this one is gone or does not answer ({why})"
