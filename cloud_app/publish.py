"""From a run's parts to a version in a model repository: the members, what they are worth, one ONNX file.

Knows what is measured and what is written of it. Knows no round, no wire and no HTTP.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from cloud_app import ensemble, fitting, heldout, int8, saved, selftest
from cloud_app.ensemble import HEAD, OVERLAY, Combine, DType
from cloud_app.export import export
from cloud_app.fitting import Fit
from cloud_app.repository import Repository
from cloud_app.saved import Record
from cloud_app.session import open_session
from emo import data
from emo.data import Dataset
from emo.errors import ExportError, ServeError, nearest
from emo.weights import Weights

log = logging.getLogger("emo")

_LOOK = 8  # versions


@dataclass(frozen=True)
class Choice:
    """What the ensemble is to be, as `Overlays` and `Export` of the configuration say it. `combine`: left out, as the
    run was configured. `without`: these edges."""

    combine: Combine | None = None
    head: bool = False
    fit: Fit = "none"
    int8: bool = False
    without: tuple[str, ...] = ()


def dtype(dataset: Dataset) -> DType:
    return "uint8" if dataset.images.dtype == "uint8" else "float32"


def publish(
    record: Record,
    parts: Mapping[str, Weights],
    choice: Choice,
    models: Path,
    name: str,
    added: int | None = None,
) -> dict[str, Any]:
    """Build, measure, export, and add it to the repository `models` as the next version of `name`. `added`: the version
    as which it was added already, by a process that did not live to tell.

    Returns `accuracy` on the test set as shares: `fl` (the FL model, where its head is there), `boosted` (each
    overlay's pair), `bagged` and `bagged_logits` (all overlays, equally), `served` (what was exported); `members` and
    their `shares`, `onnx`, `version`, `bytes`, `max_error` (of fp32 against torch), `precision`, and, where something
    was chosen by held-out data, `heldout`: its size, and the accuracy there before and after.

    Raises ExportError: nothing to combine, no held-out data where `choice.fit` needs it, parts that do not fit, or
    ONNX and torch disagree; ServeError: the repository cannot take it; DataError: the data is not here.
    """
    combine = choice.combine or record.combine
    test = data.testing(record.data, record.model)
    repository = Repository(models)
    repository.check(name, test.classes, record.model.input, dtype(test))
    overlays = _overlays(parts, choice.without)
    if choice.head and HEAD not in parts:
        raise ExportError(f"this run has not kept the FL model's head, only {', '.join(parts) or 'nothing'}")
    members = overlays + [HEAD] * choice.head
    if not members:
        raise ExportError(
            "no edge sent an overlay: no ensemble. The cloud's log and events.jsonl say what became of each edge in "
            "`overlays.edges`. (`emo export --head` exports the FL model alone.)"
        )
    everyone = overlays + [HEAD] * (HEAD in parts)
    whole = ensemble.build(
        record.model, parts, test.mean, test.std, dtype(test), shares=dict.fromkeys(everyone, 1.0)
    )
    each = fitting.votes(whole, test)
    found: dict[str, Any] = {}
    shares = {part: 1 / len(members) for part in members}
    if choice.fit != "none":
        shares, found["heldout"] = _fitted(record, whole, everyone, members, combine, choice.fit)

    def accuracy(which: Mapping[str, float], how: Combine) -> float:
        given = torch.tensor([which.get(part, 0.0) for part in everyone])
        return fitting.accuracy(each, given / given.sum(), how, test.labels)

    found["accuracy"] = {
        "fl": accuracy({HEAD: 1}, "logits") if HEAD in parts else None,
        "boosted": [accuracy({part: 1}, "logits") for part in overlays],
        "bagged": accuracy(dict.fromkeys(overlays, 1), combine) if overlays else None,
        "bagged_logits": accuracy(dict.fromkeys(overlays, 1), "logits") if overlays else None,
        "served": accuracy(shares, combine),
    }
    module = ensemble.build(record.model, parts, test.mean, test.std, dtype(test), combine, shares)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        facts = {
            **_metadata(record, shares, test),
            "combine": combine,
            "fit": choice.fit,
            "accuracy": f"{found['accuracy']['served']:.4f}",
            "precision": "fp32",
        }
        report = export(module, path, record.model.input, test.classes, facts)
        found["precision"] = "fp32"
        if choice.int8:
            path, found["precision"] = _quantised(record, path, test, found["accuracy"])
        found["bytes"] = path.stat().st_size
        question = selftest.make(path)
        version = added or repository.add(name, path, test.classes, record.model.input, dtype(test), question)
    served = found["accuracy"]["served"]
    log.info(
        "exported %s version %d, %d bytes, accuracy %.2f %%", name, version, found["bytes"], 100 * served
    )
    return {
        **found,
        "members": list(shares),
        "shares": [round(share, 4) for share in shares.values()],
        "onnx": str(repository.path(name, version).resolve()),
        "version": version,
        "max_error": report.max_error,
    }


def added(run: str, models: Path, name: str) -> int | None:
    """The version of `name` that was made of `run`, if it is one of the last few; else None. Raises ServeError on a bad name."""
    repository = Repository(models)
    for version in repository.versions(name)[: -_LOOK - 1 : -1]:
        try:
            found = open_session(repository.path(name, version), 1).get_modelmeta().custom_metadata_map
        except ServeError:
            continue  # not one of ours, or damaged: the endpoint will say so
        if found.get("run") == run:
            return version
    return None


def from_folder(
    run: Path, models: Path, name: str, choice: Choice, data_dir: Path | None = None
) -> dict[str, Any]:
    """`publish` of the run in the folder `run`. `data_dir`: where the data lies here, if not where the run had it.
    Raises as `saved.read` and `publish`."""
    record, parts = saved.read(run)
    if data_dir is not None:
        record = record.model_copy(update={"data": record.data.model_copy(update={"dir": data_dir})})
    return publish(record, parts, choice, models, name)


def _overlays(parts: Mapping[str, Weights], without: Sequence[str]) -> list[str]:
    edges = [part.removeprefix(OVERLAY) for part in parts if part.startswith(OVERLAY)]
    for edge in without:
        if edge not in edges:
            raise ExportError(f"this run has no overlay of edge {edge}; {nearest(edge, edges)}")
    return [OVERLAY + edge for edge in edges if edge not in without]


def _fitted(
    record: Record,
    whole: ensemble.Ensemble,
    everyone: list[str],
    members: list[str],
    combine: Combine,
    what: Fit,
) -> tuple[dict[str, float], dict[str, Any]]:
    """The shares of those `members` that stay, and what they are worth on the run's held-out data."""
    kept = heldout.kept(record.data, record.model)
    each = fitting.votes(whole, kept)[[everyone.index(part) for part in members]]
    fitted = fitting.fit(each, kept.labels, combine, what)
    equal = torch.full_like(fitted, 1 / len(members))
    before, after = (fitting.accuracy(each, shares, combine, kept.labels) for shares in (equal, fitted))
    log.info("held-out accuracy %.2f %% with equal shares, %.2f %% as fitted", 100 * before, 100 * after)
    shares = {part: share for part, share in zip(members, fitted.tolist(), strict=True) if share > 0}
    return shares, {"samples": len(kept.labels), "equal": before, "fitted": after}


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


def _quantised(record: Record, path: Path, test: Dataset, accuracy: dict[str, Any]) -> tuple[Path, str]:
    """The file to serve, and its precision; `accuracy["served"]` becomes that file's."""
    train = data.training(record.data, record.model, own=False)
    if record.data.heldout:
        judged = heldout.kept(record.data, record.model)
    else:  # every other image sets the scales
        train, judged = (heldout.part(train, np.arange(first, len(train.labels), 2)) for first in (0, 1))
    quantised = int8.quantise(path, train, judged, path.with_name("int8.onnx"))
    if quantised is None:
        return path, "fp32"
    accuracy["served"] = int8.accuracy(quantised, test)
    int8.note(quantised, {"accuracy": f"{accuracy['served']:.4f}", "precision": "int8"})
    return quantised, "int8"
