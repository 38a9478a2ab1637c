"""What an edge that lies or is broken can do to what is served, and what is asked before something worse is."""

import json
import re

import numpy as np
import pytest
from ensembles import RECORD, trained

from cloud_app.ensemble import model, run_archive
from cloud_app.ensemble.member_choice import Choice
from cloud_app.ensemble.publish import publish
from cloud_app.serving.repository import Repository
from emo import cli
from emo.config import Data
from emo.errors import ExportError

NO_HELDOUT = RECORD.model_copy(update={"data": Data()})


@pytest.fixture(scope="module")
def parts():
    return trained()


def only(parts, **overlays):
    kept = {name: parts[name] for name in ("trunk", "head")}
    return kept | {f"overlay-{edge}": weights for edge, weights in overlays.items()}


def times(weights, factor):
    with np.errstate(over="ignore"):
        return {name: np.asarray(array * np.float32(factor)) for name, array in weights.items()}


def test_one_edge_that_negates_its_weights_costs_only_itself(parts, tmp_path, caplog, untraced):
    hostile = only(parts, good=parts["overlay-good"], bad=times(parts["overlay-good"], -50))
    found = publish(RECORD, hostile, Choice(), tmp_path, "m")
    assert found["members"] == ["overlay-good"]
    assert list(found["left_out"]) == ["overlay-bad"]
    assert "the overlay of edge bad is left out: without it" in caplog.text
    honest = publish(RECORD, only(parts, good=parts["overlay-good"]), Choice(), tmp_path, "m")
    assert found["accuracy"]["served"] == honest["accuracy"]["served"] > found["accuracy"]["fl"]


def test_without_held_out_data_it_costs_the_ensemble_and_not_the_model(parts, tmp_path, caplog, untraced):
    hostile = only(parts, good=parts["overlay-good"], bad=times(parts["overlay-good"], -50))
    found = publish(NO_HELDOUT, hostile, Choice(), tmp_path, "m")
    assert found["members"] == ["head"]
    assert found["accuracy"]["served"] == found["accuracy"]["fl"] > found["accuracy"]["bagged"]
    assert found["instead"] in caplog.text
    assert "the FL model alone is exported (export.at_least" in caplog.text
    asked = publish(NO_HELDOUT, hostile, Choice(at_least="none"), tmp_path, "m")
    assert asked["members"] == ["overlay-good", "overlay-bad"]
    assert asked["accuracy"]["served"] < 0.5


@pytest.mark.parametrize("factor", [np.nan, 3e38])
def test_an_archive_with_an_overlay_that_cannot_be_is_exported_without_it(parts, tmp_path, factor, untraced):
    good = parts["overlay-good"]
    broken = only(parts, good=good, bad=times(good, factor), cut=dict(list(good.items())[1:]))
    found = publish(RECORD, broken, Choice(at_least="none"), tmp_path, "m")
    assert found["members"] == ["overlay-good"]
    assert sorted(found["left_out"]) == ["overlay-bad", "overlay-cut"]
    del broken["overlay-good"]
    assert publish(RECORD, broken, Choice(), tmp_path, "m")["members"] == ["head"]
    with pytest.raises(ExportError, match=r"no overlay of this run can be used: .*65536 or more"):
        publish(RECORD, broken, Choice(at_least="none"), tmp_path, "m")


def test_a_member_that_answers_with_no_numbers_is_left_out(parts, tmp_path, monkeypatch, untraced):
    real = model.Ensemble.member_logits

    def broken(self, images):
        found = real(self, images)
        found[:1] = np.nan
        return found

    monkeypatch.setattr(model.Ensemble, "member_logits", broken)
    found = publish(RECORD, parts, Choice(), tmp_path, "m")
    assert found["left_out"] == {"overlay-bad": "it answers with NaN or infinity"}
    assert found["members"] == ["overlay-good"]


def test_a_less_accurate_version_goes_live_only_when_somebody_says_so(parts, tmp_path, capsys, monkeypatch, untraced):
    run_archive.write(tmp_path, RECORD, parts)
    command = ["export", "--run", str(tmp_path), "--out", str(tmp_path / "models"), "--at-least", "none"]
    worse = [*command, "--without", "good"]
    assert cli.main([*command, "--without", "bad"]) == 0
    told = capsys.readouterr()
    assert (told.out + told.err).count("accuracy") == 1
    repository = Repository(tmp_path / "models")
    assert cli.main(worse) == 2
    said = capsys.readouterr().err
    assert re.search(r"emo version 1, which is served, has an accuracy of 9\d\.\d\d%; this one has 0\.\d\d%", said)
    assert "--yes" in said
    assert repository.versions("emo") == [1]
    assert cli.main([*worse, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 2
    assert cli.main([*command, "--without", "bad"]) == 0  # better than what is served: nobody is asked
    repository.promote("emo", 1)
    assert cli.main(worse) == 0  # it is not what is served
    repository.promote("emo", None)
    assert cli.main([*command, "--without", "bad"]) == 0

    class Terminal:
        def __init__(self, answer):
            self.readline = lambda: answer

        def isatty(self):
            return True

    for answer, code in (("\n", 2), ("y\n", 0)):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert cli.main(worse) == code
    assert repository.versions("emo") == [1, 2, 3, 4, 5, 6]
