"""Decides which overlays are served, and with what shares.

An overlay that costs accuracy on held-out data is left out, with the reason. Where the ensemble is then less accurate than
the FL model alone, the FL model alone is served.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cloud_app.ensemble import member_weights
from cloud_app.ensemble.member_weights import Fit
from cloud_app.ensemble.model import HEAD, Combine


@dataclass(frozen=True)
class Choice:
    """What the ensemble is to be, as `Overlays` and `Export` of the configuration say it. `combine`: left out, as the
    run was configured. `without`: these edges. `answers`: what each member answers for itself is in the file, too."""

    combine: Combine | None = None
    head: bool = False
    fit: Fit = "none"
    int8: bool = False
    without: tuple[str, ...] = ()
    opset: int = 20
    at_least: Literal["head", "none"] = "head"
    answers: bool = True

    def command(self, models: Path, name: str) -> str:
        """The options with which `emo export` takes it, into the repository `models` as `name`."""
        options = ["--out", str(models), "--name", name]
        for option, value, default in (("fit", self.fit, "none"), ("at-least", self.at_least, "head")):
            options += [f"--{option}", value] if value != default else []
        options += (
            ["--head"] * self.head
            + ["--int8"] * self.int8
            + ["--no-answers"] * (not self.answers)
            + ["--opset", str(self.opset)]
        )
        return shlex.join(options)


@dataclass(frozen=True)
class Votes:
    """The `logits` (parts, N, classes) of the parts `names` on data with these `labels` (N,). `where`: for people."""

    names: Sequence[str]
    logits: torch.Tensor
    labels: np.ndarray
    where: str

    def accuracy(self, shares: Mapping[str, float], combine: Combine) -> float:
        weights = torch.tensor([shares.get(name, 0.0) for name in self.names])
        return member_weights.accuracy(self.logits, weights / weights.sum(), combine, self.labels)

    def no_numbers(self) -> list[str]:
        """The parts that answer NaN or infinity to an image."""
        return [name for name, each in zip(self.names, self.logits, strict=True) if not each.isfinite().all()]


@dataclass(frozen=True)
class Chosen:
    """`shares`: of the members. `left_out`: part -> why. `figures`: measured on held-out data, for the result.
    `instead`: why the FL model alone is served instead of an ensemble."""

    shares: Mapping[str, float]
    left_out: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    instead: str = ""


def choose(choice: Choice, combine: Combine, members: Sequence[str], test: Votes, kept: Votes | None) -> Chosen:
    """Chooses from `members`, parts of `test`, by `kept`, the votes of the same parts on held-out data. Without `kept`, `test`
    decides one thing: whether the ensemble beats the FL model. No members: the FL model alone."""
    shares = dict.fromkeys(members, 1 / max(1, len(members)))
    left_out, figures = dict[str, str](), dict[str, Any]()
    judged, fl = kept or test, None
    if choice.at_least == "head" and HEAD in test.names:
        fl = judged.accuracy({HEAD: 1}, "logits")
    if kept is not None and members:
        logits = kept.logits[[kept.names.index(part) for part in members]]
        alone = {part: kept.accuracy({part: 1}, "logits") for part in members}
        worse = [place for place, part in enumerate(members) if fl is not None and alone[part] < fl]
        fitted = member_weights.fit(logits, kept.labels, combine, choice.fit, worse).tolist()
        fitted_shares = {part: share for part, share in zip(members, fitted, strict=True) if share > 0}
        before, after = (kept.accuracy(logits, combine) for logits in (shares, fitted_shares))
        figures = {"samples": len(kept.labels), "equal": before, "fitted": after}
        left_out = {
            part: f"without it the ensemble is more accurate on {kept.where}; alone it is right for {alone[part]:.2%}"
            for part in members
            if part not in fitted_shares
        }
        shares = fitted_shares
    instead = ""
    if fl is not None and not shares:
        instead = "no member is left"
    elif fl is not None and (ours := judged.accuracy(shares, combine)) < fl:
        instead = f"the ensemble is right for {ours:.2%} of {judged.where}, the FL model alone for {fl:.2%}"
    return Chosen({HEAD: 1.0} if instead else shares, left_out, figures, instead)
