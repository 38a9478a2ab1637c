"""Chooses the members of an ensemble and their shares by data that no device has trained on, never by the test set.

Shares are those of the greatest likelihood: stacking (Breiman, Stacked Regressions, 1996) on the simplex. Members are dropped one
by one: Ensemble Selection (Caruana et al. 2004) backwards.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import nll_loss

from cloud_app.ensemble.model import Combine, Ensemble, combined
from emo.data.dataset import Dataset

Fit = Literal["none", "weights", "members", "both"]

_STEPS = 100


def votes(module: Ensemble, dataset: Dataset, batch_size: int = 64) -> torch.Tensor:
    """The members' logits (members, N, classes) on the images of `dataset`, the trunk run once."""
    with torch.inference_mode():
        starts = range(0, len(dataset.labels), batch_size)
        images = (torch.from_numpy(dataset.images[at : at + batch_size]) for at in starts)
        return torch.cat([module.member_logits(batch) for batch in images], 1)


def accuracy(logits: torch.Tensor, shares: torch.Tensor, combine: Combine, labels: np.ndarray) -> float:
    """Share of right answers of the members' `logits`; those with a share of zero have no say."""
    taken = shares > 0
    answers = combined(logits[taken], shares[taken], combine)
    return float((answers.argmax(1).numpy() == labels).mean())


def fit(
    logits: torch.Tensor, labels: np.ndarray, combine: Combine, what: Fit, suspects: Sequence[int] = ()
) -> torch.Tensor:
    """Shares (members,) that sum to one, for the members' `logits` (members, N, classes) on held-out data.

    "none": equal. "members": the member without which accuracy is highest is left out (share 0) as long as that
    raises it. "weights": those of the highest likelihood, unless they lower accuracy. "both": one after the other.
    Of `suspects`, places in `logits`, those go in any case that "members" would leave out.
    The same input gives the same shares; where one member is as good as another, the later one stays.
    """
    shares = torch.full((len(logits),), 1 / len(logits))
    may_go = range(len(logits)) if what in {"members", "both"} else suspects
    if may_go:
        shares = _dropped(logits, labels, combine, shares, may_go)
    if what in {"weights", "both"}:
        taken = shares > 0
        fitted = shares.clone()
        fitted[taken] = _likeliest(logits[taken], labels, combine)
        if accuracy(logits, fitted, combine, labels) >= accuracy(logits, shares, combine, labels):
            shares = fitted
    return shares


def _dropped(
    logits: torch.Tensor, labels: np.ndarray, combine: Combine, shares: torch.Tensor, may_go: Sequence[int]
) -> torch.Tensor:
    best = accuracy(logits, shares, combine, labels)
    while (shares > 0).sum() > 1:
        tried = []
        for member in [place for place in may_go if shares[place] > 0]:
            rest = shares.clone()
            rest[member] = 0
            tried.append(rest / rest.sum())
        accuracies = [accuracy(logits, rest, combine, labels) for rest in tried]
        if max(accuracies, default=0.0) <= best:
            break
        best, shares = max(accuracies), tried[int(np.argmax(accuracies))]
    return shares


def _likeliest(logits: torch.Tensor, labels: np.ndarray, combine: Combine) -> torch.Tensor:
    """The shares of the greatest likelihood. A temperature is fitted with them and then dropped: it changes no answer, and
    without it shares would go to members that are confident, not to those that are right."""
    precise, truth = logits.double(), torch.from_numpy(labels)
    x = torch.zeros(len(logits) + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([x], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        shares, temperature = torch.softmax(x[1:], 0), x[0].exp()  # on the simplex, above zero
        value = nll_loss((combined(precise, shares, combine) / temperature).log_softmax(1), truth)
        # By less than one image: where the data does not say, shares are equal.
        value = value + 0.1 * x.square().mean() / len(truth)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves backward() untyped
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]  # and step() of LBFGS
    return torch.softmax(x[1:].detach(), 0).float()
