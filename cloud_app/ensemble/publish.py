"""Publishes a run: its parts become one ONNX file, the next version in a model repository.

Four steps, in order: `collect` the parts and what they answer, `choose_members`, `export_checked`, `add_version`.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cloud_app.ensemble import int8, member_weights, run_archive
from cloud_app.ensemble import model as ensemble
from cloud_app.ensemble.member_choice import Choice, Chosen, Votes, choose
from cloud_app.ensemble.model import HEAD, Combine, dtype
from cloud_app.ensemble.onnx_export import export
from cloud_app.ensemble.run_archive import Record
from cloud_app.result import OVERLAY
from cloud_app.serving import known_answer
from cloud_app.serving.onnx_session import open_session
from cloud_app.serving.repository import Repository
from emo.config import Data, Model
from emo.data import heldout, registry
from emo.data.dataset import Dataset
from emo.errors import DataError, ExportError, ServeError, nearest
from emo.wire.compression import Weights

log = logging.getLogger("emo")

_LOOK = 8  # versions


@dataclass(frozen=True)
class Candidates:
    """Step 1: what may become a member. `overlays`: parts that fit the model and answer with numbers; `left_out`: part -> why
    it does not. `votes`: on the test images, of all of them and of the FL model's head where it is there; `heldout`: the
    same on held-out images, where they decide."""

    record: Record
    parts: Mapping[str, Weights]
    test: Dataset
    combine: Combine
    overlays: Sequence[str]
    left_out: Mapping[str, str]
    votes: Votes
    heldout: Votes | None


@dataclass(frozen=True)
class Exported:
    """Step 3: the file, checked. `accuracy`: on the test images, as `publish` returns it. `question`: with the answer that
    a server must give (serving/known_answer.py)."""

    path: Path
    precision: str
    accuracy: Mapping[str, Any]
    bytes: int
    max_error: float
    question: str


def publish(
    record: Record,
    parts: Mapping[str, Weights],
    choice: Choice,
    models: Path,
    name: str,
    added: int | None = None,
    sure: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Build, measure, export, and add it to the repository `models` as the next version of `name`. `added`: its version, where
    a process that was killed has added it already. `sure` is told when the version is less accurate than the one that is
    served, and raises to refuse it.

    Returns `accuracy` on the test set as shares: `fl` (the FL model, where its head is there), `boosted` (each
    overlay's pair), `bagged` and `bagged_logits` (all overlays, equally), `served` (what was exported); `members` and
    their `shares`; `left_out`, part -> why; `instead` (why the FL model alone is served instead of an ensemble); `onnx`,
    `version`, `bytes`, `max_error` (of fp32 against torch), `precision`, and, where something was chosen by held-out data,
    `heldout`: its size, and the accuracy there before and after.

    Raises ExportError: nothing to combine, no held-out data where `choice.fit` needs it, parts that do not fit, or
    ONNX and torch disagree; ServeError: the repository cannot take it; DataError: the data is not here.
    """
    test = registry.testing(record.data, record.model)
    repository = Repository(models)
    repository.check(name, test.classes, record.model.input, dtype(test))
    candidates = collect(record, parts, choice, test)
    members = choose_members(candidates, choice)
    try:
        with TemporaryDirectory() as folder:
            exported = export_checked(candidates, members, choice, Path(folder))
            version = add_version(repository, name, exported, candidates, sure) if added is None else added
    except OSError as error:
        raise ExportError(f"{error.filename or models}: cannot be written: {error.strerror}") from error
    return {
        **({"heldout": dict(members.figures)} if members.figures else {}),
        "accuracy": exported.accuracy,
        "precision": exported.precision,
        "bytes": exported.bytes,
        "members": list(members.shares),
        "shares": [round(share, 4) for share in members.shares.values()],
        "left_out": members.left_out,
        "instead": members.instead,
        "onnx": str(repository.path(name, version).resolve()),
        "version": version,
        "max_error": exported.max_error,
    }


def collect(record: Record, parts: Mapping[str, Weights], choice: Choice, test: Dataset) -> Candidates:
    """Step 1. Raises ExportError where there is nothing to combine, DataError where held-out data is missing that
    `choice.fit` needs."""
    asked = _overlays(parts, choice.without)
    if choice.head and HEAD not in parts:
        raise ExportError(f"this run has not kept the FL model's head, only {', '.join(parts) or 'nothing'}")
    if not asked and not choice.head and (choice.at_least == "none" or HEAD not in parts):
        raise ExportError(
            "no edge sent an overlay: no ensemble. The cloud's log and events.jsonl say what became of each edge in "
            "`overlays.edges`. (`emo export --head` exports the FL model alone.)"
        )
    left_out = ensemble.misfits(record.model, {part: parts[part] for part in asked})
    names = [part for part in asked if part not in left_out] + [HEAD] * (HEAD in parts)
    if not names:
        raise ExportError(next(iter(left_out.values())))
    module = _build(record, parts, test, "probabilities", dict.fromkeys(names, 1.0))

    def votes(dataset: Dataset, where: str) -> Votes:
        return Votes(names, member_weights.votes(module, dataset), dataset.labels, where)

    on_test = votes(test, "the test images")
    left_out |= {part: "it answers with NaN or infinity" for part in on_test.no_numbers() if part != HEAD}
    held_out = _heldout(record, choice)
    return Candidates(
        record,
        parts,
        test,
        choice.combine or record.combine,
        [part for part in asked if part not in left_out],
        left_out,
        on_test,
        None if held_out is None else votes(held_out, "the held-out images"),
    )


def choose_members(candidates: Candidates, choice: Choice) -> Chosen:
    """Step 2: the members with their shares, and what is left out, which is logged. Raises ExportError without members."""
    overlays = [*candidates.overlays, *[HEAD] * choice.head]
    chosen = choose(choice, candidates.combine, overlays, candidates.votes, candidates.heldout)
    chosen = replace(chosen, left_out={**candidates.left_out, **chosen.left_out})
    for part, why in chosen.left_out.items():
        log.warning("%s is left out: %s", ensemble.described(part), why)
    if chosen.instead:
        log.warning("%s: the FL model alone is exported (export.at_least, --at-least)", chosen.instead)
    if not chosen.shares:
        raise ExportError(f"no overlay of this run can be used: {next(iter(chosen.left_out.values()))}")
    return chosen


def export_checked(candidates: Candidates, members: Chosen, choice: Choice, folder: Path) -> Exported:
    """Step 3: one ONNX file in `folder`, in 8 bits where that is asked for and worth it. Raises ExportError, OSError."""
    record, test, combine = candidates.record, candidates.test, candidates.combine
    accuracy = _accuracies(candidates, members)
    facts = {
        **_metadata(record, members.shares, test),
        "combine": combine,
        "fit": choice.fit,
        "accuracy": f"{accuracy['served']:.4f}",
        "precision": "fp32",
    }
    path, precision = folder / "model.onnx", "fp32"
    max_error = _export(candidates, members, path, facts, choice)
    if choice.int8:
        quantised = int8.quantise(path, *judges(record.data, record.model), folder / "int8.onnx")
        if quantised is not None:
            path, precision = quantised, "int8"
            accuracy["served"] = int8.accuracy(path, test)
            int8.note(path, {"accuracy": f"{accuracy['served']:.4f}", "precision": precision})
    return Exported(path, precision, accuracy, path.stat().st_size, max_error, known_answer.make(path))


def add_version(
    repository: Repository,
    name: str,
    exported: Exported,
    candidates: Candidates,
    sure: Callable[[str], None],
) -> int:
    """Step 4: the number of the new version. Raises ServeError, OSError, and what `sure` does."""
    _no_worse(repository, name, exported.accuracy["served"], sure)
    test, model = candidates.test, candidates.record.model
    return repository.add(name, exported.path, test.classes, model.input, dtype(test), exported.question)


def added(run: str, models: Path, name: str) -> int | None:
    """The version of `name` that was made of `run`, if it is one of the last few; else None. Raises ServeError on a bad name."""
    repository = Repository(models)
    for version in repository.versions(name)[: -_LOOK - 1 : -1]:
        if _facts(repository, name, version).get("run") == run:
            return version
    return None


def _facts(repository: Repository, name: str, version: int) -> Mapping[str, str]:
    """What the file says of itself; nothing where it is not one of ours, or damaged: the endpoint will say so."""
    try:
        facts = open_session(repository.path(name, version), 1).get_modelmeta().custom_metadata_map
    except ServeError:
        return {}
    return dict(facts)


def _no_worse(repository: Repository, name: str, accuracy: float, sure: Callable[[str], None]) -> None:
    if not repository.versions(name) or repository.promoted(name) is not None:
        return  # nothing is served, or not what is added
    live = repository.current(name)
    try:
        before = float(_facts(repository, name, live).get("accuracy", "nan"))
    except ValueError:
        return
    if round(accuracy, 4) < before:
        sure(f"{name} version {live}, which is served, has an accuracy of {before:.2%}; this one has {accuracy:.2%}")


def from_folder(
    run: Path,
    models: Path,
    name: str,
    choice: Choice,
    data_dir: Path | None = None,
    sure: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """`publish` of the run in the folder `run`. `data_dir`: where the data lies here, if not where the run had it.
    Raises as `run_archive.read` and `publish`."""
    record, parts = run_archive.read(run)
    if data_dir is not None:
        record = record.model_copy(update={"data": record.data.model_copy(update={"dir": data_dir})})
    return publish(record, parts, choice, models, name, sure=sure)


def _overlays(parts: Mapping[str, Weights], without: Sequence[str]) -> list[str]:
    edges = [part.removeprefix(OVERLAY) for part in parts if part.startswith(OVERLAY)]
    for edge in without:
        if edge not in edges:
            raise ExportError(f"this run has no overlay of edge {edge}; {nearest(edge, edges)}")
    return [OVERLAY + edge for edge in edges if edge not in without]


def _build(
    record: Record, parts: Mapping[str, Weights], test: Dataset, combine: Combine, shares: Mapping[str, float]
) -> ensemble.Ensemble:
    return ensemble.build(record.model, parts, test.mean, test.std, dtype(test), combine, shares)


def _export(candidates: Candidates, members: Chosen, path: Path, facts: Mapping[str, str], choice: Choice) -> float:
    """With the FL model's own answers, where answers are wanted and its head is no member; a head that cannot be exported or
    gives no numbers must not keep the ensemble from being served."""
    model, test = candidates.record.model, candidates.test

    def export_of(parts: Mapping[str, Weights]) -> float:
        scale = test.mean, test.std, dtype(test)
        module = ensemble.build(model, parts, *scale, candidates.combine, members.shares, answers=choice.answers)
        return export(module, path, model.input, test.classes, facts, choice.opset)

    served = {part: weights for part, weights in candidates.parts.items() if part != HEAD or HEAD in members.shares}
    if choice.answers and served.keys() != candidates.parts.keys() and HEAD not in candidates.votes.no_numbers():
        try:
            return export_of(candidates.parts)
        except ExportError as error:
            log.warning("exported again, without the FL model's own answers: %s", error)
    return export_of(served)


def _accuracies(candidates: Candidates, members: Chosen) -> dict[str, Any]:
    votes, overlays, combine = candidates.votes, candidates.overlays, candidates.combine
    return {
        "fl": votes.accuracy({HEAD: 1}, "logits") if HEAD in candidates.parts else None,
        "boosted": [votes.accuracy({part: 1}, "logits") for part in overlays],
        "bagged": votes.accuracy(dict.fromkeys(overlays, 1), combine) if overlays else None,
        "bagged_logits": votes.accuracy(dict.fromkeys(overlays, 1), "logits") if overlays else None,
        "served": votes.accuracy(members.shares, combine),
    }


def _heldout(record: Record, choice: Choice) -> Dataset | None:
    """The run's held-out data, where there is some and a use for it. Raises only where `choice.fit` needs it."""
    if choice.fit == "none" and not (record.data.heldout and choice.at_least == "head"):
        return None
    try:
        return heldout.kept(record.data, record.model)
    except DataError as error:
        if choice.fit != "none":
            raise
        log.warning("%s; the ensemble is judged by the test images", error)
        return None


def judges(spec: Data, model: Model) -> tuple[Dataset, Dataset]:
    """The images that set the scales of int8, and those that judge it. Raises DataError."""
    train = registry.training(spec, model, own=False)
    if spec.heldout:
        return train, heldout.kept(spec, model)
    every_other = (train.of(np.arange(first, len(train.labels), 2)) for first in (0, 1))
    return next(every_other), next(every_other)


def _metadata(record: Record, shares: Mapping[str, float], test: Dataset) -> dict[str, str]:
    content = hashlib.sha256(np.ascontiguousarray(test.images).data)
    content.update(test.labels.data)
    version = {"seed": record.data.seed, "heldout": record.data.heldout, "test_samples": len(test.labels)}
    return {
        "run": record.run,
        "rounds": str(record.rounds),
        "members": json.dumps([part.removeprefix(OVERLAY) for part in shares]),
        "shares": json.dumps([round(share, 6) for share in shares.values()]),
        "model": record.model.model_dump_json(),
        "data": record.data.name,
        "data_version": json.dumps({**version, "test_sha256": content.hexdigest()}),
        "trained_with": record.emo,
    }
