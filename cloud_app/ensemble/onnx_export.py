"""Exports an ensemble to one ONNX file, and checks that it answers as torch does.

The file holds nothing of the machine that wrote it: no paths, no source lines.
"""

import io
import json
import logging
import os
import platform
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from cloud_app.ensemble.model import Ensemble
from cloud_app.ensemble.onnx_domains import only_used
from cloud_app.serving.model import MEMBERS
from cloud_app.serving.onnx_session import open_session
from emo import __version__
from emo.errors import ExportError, ServeError

TOLERANCE = 1e-4
BATCHES = (1, 2, 7, 64)
OUTPUTS = ("logits", "probabilities", MEMBERS)
LARGEST = 2_000_000_000  # bytes; protobuf ends at 2 GiB, and the graph needs some of it


def export(
    module: Ensemble,
    path: Path,
    input_shape: tuple[int, ...],
    labels: Sequence[str],
    metadata: Mapping[str, str],
    opset: int = 20,
) -> float:
    """Write `module` to `path`, replacing the file there in one step; no other file is needed with it.

    Input `images` (batch, *input_shape) of `module.dtype`; outputs `logits` and `probabilities`, float32
    (batch, classes), and of a module with `answers` `member_probabilities` (batch, answers, classes); any batch size. The
    file's metadata: `labels` and `answers` (JSON lists), `mean`, `std`, `versions`, and what `metadata` says (members, round,
    accuracy, ...). `opset`: of ONNX, 18 to 24.

    Checked before `path` is touched: ONNX's own checker; that an image has the same answer alone and in a batch; then
    onnxruntime against torch at batches 1, 2, 7 and 64 of images drawn around `mean`: the largest absolute difference,
    over max(1, the largest logit), is at most TOLERANCE = 1e-4. That difference is returned.

    Raises ExportError when torch cannot export a part, the labels do not fit, the answers or outputs differ, or it is too
    large for one file.
    """
    module.eval()
    size = sum(each.nbytes for each in module.state_dict().values())
    if size > LARGEST:
        raise ExportError(
            f"the ensemble's weights are {size:,} bytes, one ONNX file holds {LARGEST:,}: take fewer members"
        )
    classes = _run(module, _images(module, 2, input_shape))[0].shape[1]
    if len(labels) != classes:
        raise ExportError(f"the ensemble gives {classes} classes, there are {len(labels)} labels")
    _must_answer_alone(module, input_shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        temporary = Path(folder) / "model.onnx"
        # Two samples: a batch of one would be frozen into the graph.
        example = torch.zeros(2, *input_shape, dtype=getattr(torch, module.dtype))
        model = trace(module, example, "images", _outputs(module), opset)
        onnx.helper.set_model_props(model, {**metadata, **_facts(module, labels)})
        onnx.checker.check_model(model, full_check=True)
        temporary.write_bytes(model.SerializeToString())
        max_error = _compare(module, temporary, input_shape)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    return max_error


def trace(
    module: torch.nn.Module, example: torch.Tensor, name: str, outputs: Sequence[str], opset: int = 20
) -> onnx.ModelProto:
    """The graph of `module`, its first axis open, its input called `name`; nothing of this machine is in it.

    `example`: two samples or more. Raises ExportError.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                input_names=[name],
                output_names=list(outputs),
                opset_version=opset,
                dynamo=True,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
    except Exception as error:  # a user's own network may fail in any of the exporter's stages
        raise ExportError(f"torch cannot export this network to ONNX: {_why(error)}") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    only_used(model)
    versions = [each.version for each in model.opset_import if not each.domain]
    if versions != [opset]:
        raise ExportError(f"torch exports this network as opset {versions}, not as {opset}: choose another")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    # It warns of torchvision's absence, and of its own deprecated calls; where it fails, it prints the graph.
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.fx.experimental.symbolic_shapes")
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _why(error: BaseException) -> str:
    """One line of torch's long message, and the line of the user's code where it happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    ours = (Path(torch.__file__).parent, Path(__file__).parents[1])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename).is_relative_to(folder) for folder in ours)
    ]
    return text + (f" ({frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line})" if frames else "")


def _strip(model: onnx.ModelProto) -> None:
    """Removes the stack traces that the exporter notes on every node: they hold paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _outputs(module: Ensemble) -> tuple[str, ...]:
    return OUTPUTS if module.answers else OUTPUTS[:2]


def _facts(module: Ensemble, labels: Sequence[str]) -> dict[str, str]:
    versions = {"emo": __version__, "torch": torch.__version__, "onnx": onnx.__version__}
    return {
        "labels": json.dumps(list(labels)),
        **({"answers": json.dumps(module.answers)} if module.answers else {}),
        "mean": json.dumps(module.mean.tolist()),
        "std": json.dumps(module.std.tolist()),
        "versions": json.dumps({**versions, "python": platform.python_version()}),
    }


def _must_answer_alone(module: Ensemble, input_shape: tuple[int, ...]) -> None:
    images = _images(module, 7, input_shape)
    together = _run(module, images)
    try:
        alone = [_run(module, images[at : at + 1]) for at in range(len(images))]
        off = max(
            float(np.abs(whole - np.concatenate(each)).max()) / max(1.0, float(np.abs(whole).max()))
            for whole, each in zip(together, zip(*alone, strict=True), strict=True)
        )
        wrong = f"the answer for an image changes by {off:.2g} of the largest logit with the images beside it"
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        off, wrong = np.inf, f"the ensemble takes a batch, but not one image alone: {error}"
    if off <= TOLERANCE:
        return
    kinds = torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d
    norms = [name for name, layer in module.named_modules() if isinstance(layer, kinds)]
    without = [name for name in norms if module.get_submodule(name).running_mean is None]
    why = "does a layer compute over the whole batch, or draw random numbers?"
    if without:
        why = f"batch norm without running statistics ({', '.join(without[:3])}); set track_running_stats=True"
    raise ExportError(f"{wrong}: {why}")


def _compare(module: Ensemble, path: Path, input_shape: tuple[int, ...]) -> float:
    try:
        session = open_session(path)
    except ServeError as error:
        raise ExportError(f"the exported ensemble: {error}") from error
    worst = 0.0
    for batch in BATCHES:
        images = _images(module, batch, input_shape)
        expected = _run(module, images)
        try:
            outputs = session.run(_outputs(module), {"images": images})
        except Exception as error:  # as open_session says; a batch that the trace has frozen ends here too
            raise ExportError(f"the exported ensemble does not run at batch {batch}: {error}") from error
        scale = max(1.0, float(np.abs(expected[0]).max()))
        for name, ours, theirs in zip(_outputs(module), expected, outputs, strict=True):
            if ours.shape != theirs.shape:
                raise ExportError(f"{name} at batch {batch}: torch gives {ours.shape}, ONNX {theirs.shape}")
            off = float(np.abs(ours - theirs).max()) / scale
            if not off <= TOLERANCE:  # so that NaN fails too
                raise ExportError(
                    f"{name} at batch {batch}: ONNX differs from torch by {off:.2g} of the largest logit, "
                    f"at most {TOLERANCE:g} is allowed; has a layer of the network a different meaning in ONNX?"
                )
            worst = max(worst, off)
    return worst


def _images(module: Ensemble, batch: int, input_shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Noise in the dataset's own units."""
    per_channel = (-1, *[1] * (len(input_shape) - 1))
    noise = np.random.default_rng(batch).standard_normal((batch, *input_shape))
    images = module.mean.numpy().reshape(per_channel) + noise * module.std.numpy().reshape(per_channel)
    if module.dtype == "uint8":
        images = images.clip(0, 255).round()
    return np.asarray(images, module.dtype)


def _run(module: Ensemble, images: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
    with torch.inference_mode():
        return tuple(output.numpy() for output in module(torch.from_numpy(images)))
