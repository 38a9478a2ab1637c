"""What a method's weights are worth served: the ensemble that the cloud would export.

Knows the parts of a plan's model and the cloud's ensemble. Knows no round and no run.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from cloud_app.ensemble import onnx_export as onnx
from cloud_app.ensemble.model import DType, Ensemble
from emo.data.dataset import Dataset
from emo.errors import ExportError
from emo.models import split_network
from emo.wire.messages import Weights
from testbed import nets
from testbed.plan import Plan


def ensemble(plan: Plan, parts: Mapping[str, Weights], test: Dataset) -> Ensemble:
    """`parts`: as `Method.weights` gives them. FL and SFL have one member, EMO one an edge, whose probabilities are
    averaged as the cloud does; the FL model's head is none of them, unless `emo export --head` asks for it. Raises ExportError where there is nothing to serve, ModelError where weights of
    another network are among them."""
    if "trunk" not in parts:
        raise ExportError(f"there is no trunk among the weights, only {', '.join(parts) or 'nothing'}")
    net = split_network.network(plan.model, seed=0)
    members = []
    split_network.load(net.trunk, parts["trunk"])
    for name in _members(plan, parts):
        small = name == "head" and plan.method == "fl-small"
        members.append(net.head if small else split_network.overlay(plan.model, seed=0))
        split_network.load(members[-1], parts[name])
    dtype: DType = "uint8" if test.images.dtype == "uint8" else "float32"
    return Ensemble(net.trunk, members, test.mean, test.std, dtype)


def tried(plan: Plan, test: Dataset, path: Path) -> None:
    """`export` of a network that is not trained, to a temporary file: before a run that may take a night. Of our own networks EMO's tests
    have shown it. Raises ExportError, ModelError."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ExportError(f"{path}: name a file, in a folder that is there")
    if plan.model.name in split_network.BUILT_IN:
        return
    net = nets.build(plan)
    parts = {"trunk": split_network.weights(net.trunk), "head": split_network.weights(net.head)}
    if plan.method == "emo":
        parts["overlay-1"] = split_network.weights(split_network.overlay(plan.model, plan.seed))
    with TemporaryDirectory() as folder:
        export(plan, parts, test, Path(folder) / "model.onnx")


def export(plan: Plan, parts: Mapping[str, Weights], test: Dataset, path: Path) -> onnx.Report:
    """One ONNX file at `path`. Raises ExportError, where torch and ONNX disagree too."""
    metadata = {"method": plan.method, "rounds": str(plan.rounds), "model": plan.model.model_dump_json()}
    return onnx.export(
        ensemble(plan, parts, test),
        path,
        plan.model.input,
        test.classes,
        {**metadata, "data": plan.data.name, "members": str(len(_members(plan, parts)))},
    )


def _members(plan: Plan, parts: Mapping[str, Weights]) -> list[str]:
    return sorted(parts.keys() - ({"trunk", "head"} if plan.method == "emo" else {"trunk"}))
