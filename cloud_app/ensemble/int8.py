"""Quantises an exported model to 8 bits, where that is worth it: static quantisation with QDQ nodes, behind two gates.

`quantise` gives a file only if it answers about as well and clearly faster, on this machine. Source: onnxruntime's quantisation guide; weights are signed
with a scale a channel, activations unsigned with one scale a tensor.
"""

import contextlib
import logging
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cloud_app.ensemble.onnx_domains import only_used
from cloud_app.serving.onnx_session import open_session
from emo.data.dataset import Dataset
from emo.errors import ExportError

# isort: split
# After cloud_app.serving.onnx_session, which switches the telemetry off.
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

LOSS = 0.005  # of accuracy, at most
GAIN = 1.1  # times as fast, at least
BATCH = 8
LEAST = 200  # images that tell such a loss from none
_RUNS = 15

log = logging.getLogger("emo")


def quantise(path: Path, scales: Dataset, judged: Dataset, to: Path) -> Path | None:
    """The model `path` in 8 bits, at `to`; None, with the reason logged, where it does not pass the gates.

    256 images of `scales` set the scales; 2,048 of `judged` (fewer where there are fewer of either) are the gates:
    accuracy falls by LOSS at most, and a batch of BATCH is GAIN times as fast (median, the session's own threads).
    Neither is the test set. Raises ExportError where there are too few images to judge by, or onnxruntime cannot
    quantise the model.
    """
    must_be_enough(judged)
    judged = _some(judged, 2048)
    try:
        _write(path, _some(scales, 256).images, to)
    except Exception as error:  # onnxruntime's errors share no class of their own
        raise ExportError(f"int8: onnxruntime cannot quantise this model: {error}") from error
    before, after = (accuracy(file, judged) for file in (path, to))
    slow, fast = (_latency(file, judged.images[:BATCH]) for file in (path, to))
    text = (
        f"int8: accuracy {after:.2%} after {before:.2%}, {1e3 * fast:.2f} ms a batch of {BATCH} after {1e3 * slow:.2f}"
    )
    if before - after > LOSS or slow < GAIN * fast:
        log.warning("%s; it stays fp32", text)
        return None
    log.debug("%s", text)
    return to


def must_be_enough(judged: Dataset) -> None:
    """Raises ExportError."""
    if len(judged.labels) < LEAST:
        raise ExportError(f"int8: {len(judged.labels)} images to judge accuracy by, at least {LEAST} are needed")


def accuracy(path: Path, dataset: Dataset) -> float:
    """Share of right answers of the model `path` on `dataset`."""
    session, right = open_session(path), 0
    for at in range(0, len(dataset.labels), 64):
        (logits,) = session.run(["logits"], {"images": dataset.images[at : at + 64]})
        right += int((logits.argmax(1) == dataset.labels[at : at + 64]).sum())
    return right / len(dataset.labels)


def note(path: Path, metadata: Mapping[str, str]) -> None:
    """Put `metadata` into the file, over what it says of the same names."""
    model = onnx.load(path)
    known = {each.key: each.value for each in model.metadata_props}
    onnx.helper.set_model_props(model, {**known, **metadata})
    path.write_bytes(model.SerializeToString())


def _write(path: Path, images: np.ndarray[Any, Any], to: Path) -> None:
    batches: Iterator[dict[str, np.ndarray[Any, Any]]] = (
        {"images": images[at : at + 32]} for at in range(0, len(images), 32)
    )

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped base class
        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            return next(batches, None)

    prepared = to.with_suffix(".prepared.onnx")
    try:
        with _quiet():
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(to),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
    finally:
        prepared.unlink(missing_ok=True)
    model = onnx.load(to)
    only_used(model)
    onnx.helper.set_model_props(model, {e.key: e.value for e in onnx.load(path).metadata_props})
    to.write_bytes(model.SerializeToString())


def _some(dataset: Dataset, count: int) -> Dataset:
    return dataset.of(np.random.default_rng(0).permutation(len(dataset.labels))[:count])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # It logs on the root logger, of nothing that a person could act on.
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _latency(path: Path, images: np.ndarray[Any, Any]) -> float:
    session = open_session(path)
    took = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        session.run(["logits"], {"images": images})
        took.append(time.perf_counter() - start)
    return statistics.median(took)
