"""Runs the cloud: rounds, then the ensemble, its evaluation and its ONNX file in the model repository."""

import json
import logging
import math
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from cloud_app import ensemble
from cloud_app.export import export
from cloud_app.node import CloudNode
from cloud_app.repository import Repository
from emo import data, models
from emo.config import CloudConfig
from emo.data import Dataset
from emo.errors import ExportError
from emo.journal import Journal
from emo.messages import OverlayWeights, Status, Update, Weights
from emo.mqtt import MqttChannel
from emo.runner import Runner
from emo.topics import subscription
from emo.training import evaluate

log = logging.getLogger("emo")


def run(config: CloudConfig, stop: threading.Event) -> dict[str, Any] | None:
    """The whole run; its result is also in state_dir/result.json. None when `stop` came first.

    Raises EmoError on what does not fit, before anything connects; QuorumError when devices stay away.
    """
    torch.set_num_threads(config.threads)
    _, test = data.load(config.data)
    data.must_fit(test, config.model)
    Repository(config.export.models).check(config.export.name, test.classes, config.model.input, _dtype(test))
    journal = Journal(config.state_dir)
    net = models.network(config.model, config.rounds.seed)

    def accuracy(weights: Weights) -> tuple[float, float]:
        models.load(net, weights)
        return evaluate(net, test)

    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{config.rounds.seed}"
    node = CloudNode(config, name, models.weights(net), journal, accuracy)
    root = config.wan.root
    filters = [subscription(root, kind) for kind in (Status, Update, OverlayWeights)]
    channel = MqttChannel(config.wan, f"{root}-{config.id}-wan", filters, journal, node.hello(online=False))
    start = time.monotonic()
    log.info("run %s: waiting for %d devices", name, config.rounds.min_devices)
    Runner(node, {"wan": channel}, journal).run(stop)
    if not node.done:
        return None
    journal.event("exporting")
    result = finish(config, node.weights, node.overlays, test, name)
    result["sfl_bytes"] = _sfl_bytes(config, node)
    result["seconds"] = round(time.monotonic() - start, 1)
    (config.state_dir / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def finish(
    config: CloudConfig, weights: Weights, overlays: Mapping[str, OverlayWeights], test: Dataset, run: str
) -> dict[str, Any]:
    """Boosted pairs, bagged ensemble, ONNX. Returns accuracies, and where the model and a sample image lie.

    Raises ExportError: no overlay came, one does not fit, or ONNX and torch disagree.
    """
    if not overlays:
        raise ExportError("no edge sent an overlay: no ensemble. Are the edges in `overlays.edges` running?")
    net = models.network(config.model, 0)
    models.load(net, weights)
    sent = {edge: overlays[edge].weights for edge in sorted(overlays)}

    def build(edges: Mapping[str, Weights], combine: ensemble.Combine) -> ensemble.Ensemble:
        return ensemble.build(config.model, weights, edges, test.mean, test.std, _dtype(test), combine)

    bagged = build(sent, config.overlays.combine)
    accuracy: dict[str, Any] = {
        "fl": evaluate(net, test)[0],
        "boosted": [_accuracy(build({edge: sent[edge]}, "logits"), test) for edge in sent],
        "bagged": _accuracy(bagged, test),
        "bagged_logits": _accuracy(build(sent, "logits"), test),
    }
    log.info("FL %.2f %%, bagged ensemble %.2f %%", 100 * accuracy["fl"], 100 * accuracy["bagged"])
    metadata = {
        "run": run,
        "rounds": str(config.rounds.rounds),
        "members": json.dumps(list(sent)),
        "combine": config.overlays.combine,
        "accuracy": f"{accuracy['bagged']:.4f}",
        "model": config.model.model_dump_json(),
        "data": config.data.name,
    }
    repository = Repository(config.export.models)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        report = export(bagged, path, config.model.input, test.classes, metadata)
        version = repository.add(config.export.name, path, test.classes, config.model.input, _dtype(test))
    log.info("exported %s version %d, %d bytes", config.export.name, version, report.bytes)
    return {
        "run": run,
        "rounds": config.rounds.rounds,
        "accuracy": accuracy,
        "edges": {edge: _shares(overlays[edge]) for edge in sent},
        "onnx": str(repository.path(config.export.name, version).resolve()),
        "version": version,
        "max_error": report.max_error,
        "sample": _sample(config.state_dir, test),
    }


def _sfl_bytes(config: CloudConfig, node: CloudNode) -> int:
    """What split federated learning (SplitFed V1) sends for the same rounds, raw fp32: each sample's activation
    up and its gradient down in every epoch, and the trunk down and up for every update."""
    split = math.prod(models.split_shape(config.model))
    trunk = sum(array.nbytes for name, array in node.weights.items() if name.startswith("trunk."))
    return 2 * 4 * split * node.trained + 2 * trunk * node.updates


def _accuracy(module: ensemble.Ensemble, test: Dataset) -> float:
    """Share of the test images, as they lie in the dataset, whose largest logit is the label's."""
    right = 0
    with torch.inference_mode():
        for at in range(0, len(test.labels), 256):
            logits, _ = module(torch.from_numpy(test.images[at : at + 256]))
            right += int((logits.argmax(1).numpy() == test.labels[at : at + 256]).sum())
    return right / len(test.labels)


def _dtype(test: Dataset) -> ensemble.DType:
    return "uint8" if test.images.dtype == "uint8" else "float32"


def _shares(overlay: OverlayWeights) -> dict[str, int]:
    return {"steps": overlay.steps, "attempted": overlay.attempted, "sent": overlay.sent}


def _sample(folder: Path, test: Dataset) -> dict[str, str] | None:
    """One test image as PNG, for a request to repeat by hand; None for data that is no image."""
    pixels = test.images[-1]
    if test.images.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[0] not in {1, 3}:
        return None
    path = folder / "sample.png"
    Image.fromarray(pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)).save(path)
    return {"image": str(path.resolve()), "truth": test.classes[int(test.labels[-1])]}
