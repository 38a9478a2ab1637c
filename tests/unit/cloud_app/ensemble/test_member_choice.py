"""Who is left out of an ensemble, who is not, and when it is not served at all."""

import dataclasses

import numpy as np
import pytest
import torch

from cloud_app.ensemble.member_choice import Choice, Votes, choose

LABELS = np.arange(400) % 4


def knows(*classes, seed=0, noise=0.5):
    """Logits (400, 4) of a member that has seen these classes only."""
    drawn = np.random.default_rng(seed).standard_normal((400, 4)) * noise
    seen = np.isin(np.arange(4), classes)
    return drawn + np.eye(4)[LABELS] * 3 * seen[LABELS][:, None] + np.where(seen, 0, -2)


MEMBERS = {
    "overlay-a": knows(0, 1),
    "overlay-b": knows(2, 3, seed=1),
    "overlay-c": -50 * knows(0, 1, 2, 3, seed=2),
    "head": knows(0, 1, 2, seed=3),
}
VOTES = Votes(list(MEMBERS), torch.tensor(np.array(list(MEMBERS.values())), dtype=torch.float32), LABELS, "kept")
HONEST = ["overlay-a", "overlay-b"]


def test_pairs_that_are_worse_than_fl_and_together_better_stay():
    alone = [VOTES.accuracy({name: 1}, "logits") for name in (*HONEST, "head")]
    assert max(alone[:2]) < alone[2] < 0.8
    chosen = choose(Choice(), "probabilities", HONEST, VOTES, VOTES)
    assert (list(chosen.shares), chosen.left_out, chosen.instead) == (HONEST, {}, "")
    assert chosen.figures["fitted"] == chosen.figures["equal"] > 0.9


@pytest.mark.parametrize("fit", ["none", "weights", "members", "both"])
@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_by_held_out_data_one_that_costs_accuracy_goes(fit, combine):
    test = dataclasses.replace(VOTES, labels=(LABELS + 1) % 4)  # which has no say
    chosen = choose(Choice(fit=fit), combine, [*HONEST, "overlay-c"], test, VOTES)
    assert list(chosen.left_out) == ["overlay-c"]
    assert chosen.left_out["overlay-c"].endswith("alone it is right for 0.00%")
    assert list(chosen.shares) == HONEST
    assert chosen.figures["fitted"] > 0.9
    assert chosen.figures["equal"] < 0.3


def test_an_ensemble_worse_than_the_fl_model_is_not_served():
    poisoned = [*HONEST, "overlay-c"]
    chosen = choose(Choice(), "logits", poisoned, VOTES, None)
    assert chosen.shares == {"head": 1.0}
    assert "of kept, the FL model alone for 7" in chosen.instead
    assert list(choose(Choice(at_least="none"), "logits", poisoned, VOTES, None).shares) == poisoned
    headless = dataclasses.replace(VOTES, names=[*poisoned, "another"])
    assert list(choose(Choice(), "logits", poisoned, headless, None).shares) == poisoned


def test_where_nobody_is_left_it_is_the_fl_model():
    assert choose(Choice(), "logits", [], VOTES, None).instead == "no member is left"
    assert choose(Choice(at_least="none"), "logits", [], VOTES, VOTES).shares == {}


def test_answers_that_are_no_numbers_are_seen():
    each = VOTES.logits.clone()
    each[1, 7, 2], each[3, 0, 0] = torch.nan, torch.inf
    assert dataclasses.replace(VOTES, logits=each).no_numbers() == ["overlay-b", "head"]
