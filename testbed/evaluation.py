"""What a method's weights are worth: how often its networks are right, and the ensemble that the cloud would export."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from cloud_app.ensemble import model, onnx_export, run_archive
from cloud_app.ensemble.model import HEAD, TRUNK, Ensemble
from emo.data.batches import tensors
from emo.data.dataset import Dataset
from emo.errors import ExportError
from emo.models import split_network
from emo.models.split_network import inference
from emo.wire.messages import Weights
from testbed import node_configs
from testbed.plan import Plan

_BATCH = 500


def accuracies(
    trunk: nn.Module, heads: Mapping[str, nn.Module], served: Sequence[str], test: Dataset
) -> dict[str, float]:
    """Percent right on `test`, by the names of `heads`; and `model`, the mean of the probabilities of those that are
    `served` (cloud_app/ensemble/model.py)."""
    right = dict.fromkeys(["model", *heads], 0)
    for start in range(0, len(test.labels), _BATCH):
        inputs, labels = tensors(test, slice(start, start + _BATCH))
        with inference(trunk):
            activations = trunk(inputs)
            chances = {}
            for name, head in heads.items():
                with inference(head):
                    chances[name] = torch.softmax(head(activations.clone()), 1)  # one may work in place
        chances["model"] = torch.stack([chances[name] for name in served]).mean(0)
        for name, probabilities in chances.items():
            right[name] += int((probabilities.argmax(1) == labels).sum())
    return {name: 100 * count / len(test.labels) for name, count in right.items()}


def ensemble(plan: Plan, parts: Mapping[str, Weights], test: Dataset) -> Ensemble:
    """`parts`: as `Method.weights` gives them. FL and SFL have one member, EMO one an edge, whose probabilities are
    averaged as the cloud does; its FL model's head is none of them, unless `emo export --head` asks for it.

    Raises ExportError where there is nothing to serve, or the weights are another network's."""
    parts = run_archive.members_named(plan.method, parts)
    left_out = {TRUNK, HEAD} if plan.method == "emo" else {TRUNK}
    shares = dict.fromkeys(sorted(parts.keys() - left_out), 1.0)
    return model.build(plan.model, parts, test.mean, test.std, model.dtype(test), shares=shares)


def try_export(plan: Plan, test: Dataset, path: Path) -> None:
    """`export` of an untrained network to a temporary file, before a run that may take a night. Our own networks are left
    out: EMO's tests export them. Raises ExportError, ModelError."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ExportError(f"{path}: name a file, in a folder that is there")
    if plan.model.name in split_network.BUILT_IN:
        return
    net = node_configs.network(plan)
    parts = {TRUNK: split_network.weights(net.trunk), HEAD: split_network.weights(net.head)}
    if plan.method == "emo":
        parts["overlay-1"] = split_network.weights(split_network.overlay(plan.model, plan.seed))
    with TemporaryDirectory() as folder:
        export(plan, parts, test, Path(folder) / "model.onnx")


def export(plan: Plan, parts: Mapping[str, Weights], test: Dataset, path: Path) -> float:
    """One ONNX file at `path`. How far its answers are from torch's, as a share of the largest logit; raises ExportError where that
    is too far."""
    module = ensemble(plan, parts, test)
    facts = {
        "method": plan.method,
        "rounds": str(plan.rounds),
        "model": plan.model.model_dump_json(),
        "data": plan.data.name,
        "members": str(len(module.members)),
    }
    return onnx_export.export(module, path, plan.model.input, test.classes, facts)
