"""When the overlay trains, on what, and how it comes back after a restart: the training side of an edge.

Knows the cache, the trainer, who judges batches, the checkpoint and the budget. Knows no message and no clock. One thread trains;
`begin` and what it is told of the run may come from another.
"""

from collections.abc import Callable
from typing import Any

from edge_app.cache.replay_cache import ReplayCache, Sample
from edge_app.overlay.batch_filter import Judge
from edge_app.overlay.checkpoint import CheckpointFile, State
from edge_app.overlay.trainer import Trainer
from edge_app.snapshot import TrainingState
from emo.config import Overlay
from emo.errors import CacheError
from emo.journal import Journal
from emo.wire.messages import Weights

_DRAWS = 4  # for one step, of as many batches as it lacks


class Training:
    """`make`: a trainer with fresh weights, for each run. `checkpoint`: None in a simulation."""

    def __init__(
        self,
        settings: Overlay,
        cache: ReplayCache,
        journal: Journal,
        make: Callable[[], Trainer],
        checkpoint: CheckpointFile | None,
        judge: Judge,
    ) -> None:
        self._judge = judge
        self._settings, self._cache, self._journal = settings, cache, journal
        self._make, self._checkpoint = make, checkpoint
        self._of = "", make()  # run, trainer: always taken together
        self._kept = self._of[1].kept
        self._spent = 0  # batches, of all steps: rolled back ones too
        self.progress = 0.0  # share of the run's rounds that are over

    @property
    def steps(self) -> int:
        return self._of[1].steps

    def begin(self, run: str) -> None:
        """Another run, or this process's first: from its checkpoint where there is one."""
        trainer, self.progress = self._make(), 0.0
        self._judge.begin()
        saved = self._checkpoint.load(run, trainer.state()) if self._checkpoint else None
        if saved is not None:
            trainer.load(saved.state)
            try:
                self._cache.resume(saved.sampler)
                self._judge.resume(saved.sampler.get("judge"))
            except CacheError as error:
                self._journal.problem("checkpoint.sampler", f"{error}; what was trained on is not known")
            self._journal.event("resumed", run=run, steps=trainer.steps)
        self._of, self._kept = (run, trainer), trainer.kept
        self._spent = trainer.steps * self._settings.batches

    def within_budget(self, attempted: int) -> bool:
        """Whether there is to be another step, once the devices have offered `attempted` batches."""
        if self._settings.budget == "time":
            return attempted > 0
        return self._spent < self._settings.replay_ratio * attempted

    def step(self) -> bool:
        """False when there is nothing to train on. Raises CacheError when the disk cannot be read."""
        run, trainer = self._of
        samples = self._samples()
        if samples is None:
            return False
        self._spent += self._settings.batches
        if not samples:
            return True  # what there is may not be trained on
        refused, rollbacks = trainer.refused_steps, trainer.rollbacks
        batches = [(sample.activations, sample.labels) for sample in samples]
        losses = trainer.step(batches, [sample.weight for sample in samples], self.progress)
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
            if self._checkpoint is not None:
                self._checkpoint.save(run, self._kept, self._sampler())
        return True

    def _samples(self) -> list[Sample] | None:
        """What the next step is of, a few more drawn where some are left out; None when there is nothing at all."""
        chosen: list[Sample] = []
        drawn = False
        for _ in range(_DRAWS):
            found = [self._cache.sample() for _ in range(self._settings.batches - len(chosen))]
            given = [sample for sample in found if sample is not None]
            drawn |= bool(given)
            taken, wrong = self._judge.choose(given)
            chosen += taken
            for sample in wrong:
                self._aside(sample, "its activations are out of scale")
            if len(chosen) == self._settings.batches or not given:
                break
        return chosen if drawn else None

    def _aside(self, sample: Sample, why: str) -> None:
        self._cache.set_aside(sample)
        self._journal.problem(
            "overlay.set_aside",
            f"batch {sample.batch} of {sample.device} is set aside until a newer version comes: {why}",
        )

    def _sampler(self) -> dict[str, Any]:
        return {**self._cache.state(), "judge": self._judge.state()}

    def keep(self) -> None:
        """A checkpoint of this moment, in good order: nobody trains any more."""
        run, trainer = self._of
        if self._checkpoint is not None and run:
            self._checkpoint.save(run, trainer.state(), self._sampler())

    def state(self) -> tuple[TrainingState, State, State]:
        """All that the next steps depend on, and the arrays of now and of what a rollback goes to: for `resume`."""
        trainer = self._of[1]
        now, kept = trainer.state(), trainer.kept
        said = TrainingState(
            progress=self.progress,
            spent=self._spent,
            refused_steps=trainer.refused_steps,
            rollbacks=trainer.rollbacks,
            steps=now.steps,
            random=now.random,
            kept_steps=kept.steps,
            kept_random=kept.random,
            judge=self._judge.state(),
        )
        return said, now, kept

    def resume(self, run: str, said: TrainingState, now: State, kept: State) -> None:
        """In another process: go on as if it had been this one. Raises ModelError on the state of another overlay."""
        trainer = self._make()
        trainer.load(now)
        trainer.kept = kept
        trainer.refused_steps, trainer.rollbacks = said.refused_steps, said.rollbacks
        self._judge.resume(said.judge)
        self._of, self._kept, self._spent, self.progress = (run, trainer), kept, said.spent, said.progress

    def like(self) -> State:
        """A state of this overlay, for its names, shapes and dtypes."""
        return self._of[1].kept

    def weights(self) -> Weights:
        """The overlay as it is now: name -> array, copied."""
        return self._of[1].weights()
