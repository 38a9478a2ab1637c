"""The training side of an edge: when the overlay trains, on what, and how it comes back after a restart.

One thread trains; `begin`, and who changes `state.progress`, may be another.
"""

import math
from collections.abc import Callable

from edge_app.cache.replay_cache import ReplayCache, Sample
from edge_app.overlay.batch_filter import BatchFilter
from edge_app.overlay.checkpoint import CheckpointFile, State, TrainingState
from edge_app.overlay.trainer import Trainer
from emo.config import Overlay
from emo.errors import CacheError
from emo.journal import Journal
from emo.wire.messages import Weights

_DRAWS = 4  # for one step, of as many batches as it lacks


class ReplayTraining:
    """`make`: a trainer with fresh weights, for each run. `checkpoint`: None in a simulation."""

    def __init__(
        self,
        settings: Overlay,
        cache: ReplayCache,
        journal: Journal,
        make: Callable[[], Trainer],
        checkpoint: CheckpointFile | None,
        batch_filter: BatchFilter,
    ) -> None:
        self._settings, self._cache, self._journal = settings, cache, journal
        self._make, self._checkpoint, self._filter = make, checkpoint, batch_filter
        self._of = "", make()  # run, trainer: always taken together
        self._kept = self._of[1].kept
        self._hold(TrainingState())
        self.loss: float | None = None  # of the last hundred steps or so, a running mean; not kept over a restart

    def _hold(self, state: TrainingState) -> None:
        self.state, self._filter.state = state, state.filter

    @property
    def steps(self) -> int:
        return self._of[1].steps

    def begin(self, run: str) -> TrainingState:
        """Another run, or this process's first: from its checkpoint where there is one. Returns `state`."""
        trainer, state = self._make(), TrainingState()
        self.loss = None
        saved = self._checkpoint.load(run, trainer.state()) if self._checkpoint else None
        if saved is not None:
            trainer.load(saved.state)
            state.filter = saved.filter
            try:
                self._cache.resume(saved.sampler)
            except CacheError as error:
                self._journal.problem("checkpoint.sampler", f"{error}; what was trained on is not known")
            self._journal.event("resumed", run=run, steps=trainer.steps)
        state.spent = trainer.steps * self._settings.batches
        self._of, self._kept = (run, trainer), trainer.kept
        self._hold(state)
        return state

    def within_budget(self, attempted: int) -> bool:
        """Whether there is to be another step, once the devices have offered `attempted` batches."""
        if self._settings.budget == "time":
            return attempted > 0
        return self.state.spent < self._settings.replay_ratio * attempted

    def step(self) -> bool:
        """False when there is nothing to train on. Raises CacheError when the disk cannot be read."""
        run, trainer = self._of
        samples = self._samples()
        if samples is None:
            return False
        self.state.spent += self._settings.batches
        if not samples:
            return True  # all were left out
        refused, rollbacks = trainer.refused_steps, trainer.rollbacks
        batches = [(sample.activations, sample.labels) for sample in samples]
        losses = trainer.step(batches, [sample.weight for sample in samples], self.state.progress)
        self._mean(losses)
        good = [True] * len(samples)
        if trainer.refused_steps > refused:
            good = [trainer.sound(batch) for batch in batches]
        for sample, loss, sound in zip(samples, losses, good, strict=True):
            if sound or not any(good):  # else it is the overlay itself that has come too far
                self._cache.trained(sample, loss)
            else:
                self._aside(sample, "the overlay's loss or gradient on it is not finite")
        if trainer is not self._of[1]:
            return True  # another run has begun meanwhile
        self._journal.count("overlay.steps")
        self._journal.count("overlay.refused", trainer.refused_steps - refused)
        if trainer.rollbacks > rollbacks:
            self._journal.problem(
                "overlay.rollbacks",
                f"the overlay's losses are not finite: back to step {trainer.steps}. If that repeats: a smaller overlay.lr",
            )
        elif trainer.kept is not self._kept:
            self._kept = trainer.kept
            self._save(run, self._kept)
        return True

    def _mean(self, losses: list[float]) -> None:
        loss = sum(losses) / len(losses)
        if math.isfinite(loss):
            self.loss = loss if self.loss is None else self.loss + 0.02 * (loss - self.loss)

    def _samples(self) -> list[Sample] | None:
        """What the next step is of, a few more drawn where some are left out; None when there is nothing at all."""
        chosen: list[Sample] = []
        drawn = False
        for _ in range(_DRAWS):
            samples = [self._cache.sample() for _ in range(self._settings.batches - len(chosen))]
            known = [sample for sample in samples if sample is not None]
            drawn |= bool(known)
            taken, wrong = self._filter.choose(known)
            chosen += taken
            for sample in wrong:
                self._aside(sample, "its activations are out of scale")
            if len(chosen) == self._settings.batches or not known:
                break
        return chosen if drawn else None

    def _aside(self, sample: Sample, why: str) -> None:
        self._cache.set_aside(sample)
        self._journal.problem(
            "overlay.set_aside",
            f"batch {sample.batch} of {sample.device} is set aside until a newer version comes: {why}",
        )

    def _save(self, run: str, state: State) -> None:
        if self._checkpoint is not None:
            self._checkpoint.save(run, state, self._cache.state(), self.state.filter)

    def keep(self) -> None:
        """A checkpoint of this moment, in good order: nobody trains any more."""
        run, trainer = self._of
        if run:
            self._save(run, trainer.state())

    def arrays(self) -> tuple[State, State]:
        """The trainer's of now, and what a rollback goes to: with `state` and the cache's all that the next steps depend on."""
        trainer = self._of[1]
        return trainer.state(), trainer.kept

    def resume(self, run: str, state: TrainingState, now: State, kept: State) -> None:
        """In another process: go on as if it had been this one. Raises ModelError on the state of another overlay."""
        trainer = self._make()
        trainer.load(now)
        trainer.kept = kept
        self._of, self._kept = (run, trainer), kept
        self._hold(state)

    def like(self) -> State:
        """A state of this overlay, for its names, shapes and dtypes."""
        return self._of[1].kept

    def weights(self) -> Weights:
        """The overlay as it is now: name -> array, copied."""
        return self._of[1].weights()
