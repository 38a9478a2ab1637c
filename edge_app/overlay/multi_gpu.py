"""One overlay on several GPUs: `torchrun --nproc-per-node N -m edge_app.run --config FILE`.

Rank 0 is the edge: it receives, caches, samples, and alone holds the optimizer, the average and the decision whether a
step is applied. The other ranks hold the module and compute. One step:

    0 -> r     how many samples there are, and the r-th part of them
    0 -> all   weights and buffers, as they are before the step
    all -> 0   the sum of gradients (of each part, divided by the whole number of samples) and of cross entropies

This moves as many bytes as the all-reduce of DDP, and there is nothing in which ranks could come to differ: a
refused step, a checkpoint or a new run is rank 0's own affair. Batch norm sees a rank's part only, and rank 0's
statistics are kept; with the other norms the loss curve is that of one process, but for the rounding of sums.

Knows who leads and how it all ends. Knows no cache, no message and no MQTT.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from edge_app.overlay import collectives
from edge_app.overlay import trainer as overlay
from edge_app.overlay.augment import Rows
from edge_app.overlay.collectives import Command, World
from emo.config import EdgeConfig, Overlay
from emo.errors import EmoError
from emo.models import split_network

_BEAT_S = 5.0  # rank 0 is heard of so often while it has nothing to train on
_CLOSE_S = 10.0


class Leader(AbstractContextManager["Leader"]):
    """Rank 0's link to the others. `on_lost` is called, from any thread, once one of them is gone or silent.

    Leaving the context ends the other ranks, and raises EmoError where one was lost. Raises EmoError when the others
    do not come.
    """

    def __init__(self, world: World, on_lost: Callable[[], None], beat_s: float = _BEAT_S) -> None:
        self._world, self._on_lost, self._beat_s = world, on_lost, beat_s
        self._lost = ""
        self._turn = threading.Lock()  # one command at a time, from its first byte to the last answer
        self._closing = threading.Event()
        collectives.join(world)
        self._beating = threading.Thread(target=self._beat, name="ranks", daemon=True)
        self._beating.start()

    def trainer(
        self, module: nn.Module, settings: Overlay, device: torch.device | str = "cpu"
    ) -> overlay.Trainer:
        """`Trainer(module, settings, device)` with all ranks behind it. Its `step` also raises EmoError, after it has
        called `on_lost`, when a rank is lost."""
        return _Led(self, module, settings, device)

    def backward(self, module: nn.Module, rows: Rows, local: Callable[[Rows, int], Tensor]) -> Tensor:
        """What `local`, which is `overlay.backward` on this rank, would give for all of `rows`."""
        with self._turn:
            if self._lost:
                raise EmoError(self._lost)
            total = len(rows.activations)
            start, end = self._world.shares(total)[0]
            try:
                collectives.deal(self._world, rows)
                collectives.share_state(module, mine=True)
                return collectives.add_up(module, local(rows.part(start, end), total), start, total)
            except Exception as error:
                self._lose(error)  # the others wait in the middle of a step, which cannot be taken back
                raise EmoError(self._lost) from error

    def close(self) -> None:
        """The others end. Harmless twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._beating.join(_CLOSE_S)
        if self._turn.acquire(timeout=_CLOSE_S):  # else a step hangs, and the process is ending anyway
            try:
                if not self._lost:
                    collectives.say(Command.STOP)
            except EmoError as error:
                self._lose(error)
            finally:
                collectives.leave()
                self._turn.release()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if self._lost and kind is None:
            raise EmoError(self._lost)

    def _beat(self) -> None:
        while not self._closing.wait(self._beat_s):
            with self._turn:
                if self._lost:
                    return
                try:
                    collectives.say(Command.IDLE)
                except EmoError as error:
                    self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._lost = (
            f"training on {self._world.size} processes broke off: {error}. This edge ends; started again by torchrun, "
            "it goes on from its checkpoint"
        )
        self._on_lost()


class _Led(overlay.Trainer):
    def __init__(
        self, leader: Leader, module: nn.Module, settings: Overlay, device: torch.device | str
    ) -> None:
        super().__init__(module, settings, device)
        self._leader = leader

    def _backward(self, rows: Rows) -> Tensor:
        return self._leader.backward(self._module, rows, self._backward_part)


def worker(config: EdgeConfig, world: World) -> None:
    """A rank above 0: computes until rank 0 says that it is over. A signal to all of them is for rank 0 to act on.

    Raises EmoError when rank 0 is gone.
    """
    torch.set_num_threads(config.threads)
    device = torch.device(world.device())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    module = split_network.overlay(config.model, config.overlay.seed).to(device).train()
    call = overlay.forward(module, config.overlay, device)
    collectives.join(world)
    try:
        while (dealt := collectives.receive(world, device)) is not None:
            rows, total = dealt
            collectives.share_state(module, mine=False)
            module.zero_grad()
            # Of fewer samples than ranks some get none.
            each = overlay.backward(call, rows, total) if len(rows.activations) else rows.labels.float()
            collectives.add_up(module, each, world.shares(total)[world.rank][0], total)
    finally:
        collectives.leave()
