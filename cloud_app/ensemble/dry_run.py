"""Tries the export before the first round, so that a run does not fail at its end."""

from pathlib import Path
from tempfile import TemporaryDirectory

from cloud_app.ensemble import model as ensemble
from cloud_app.ensemble.model import TRUNK, dtype
from cloud_app.ensemble.onnx_export import export
from cloud_app.serving import known_answer
from emo.config import CloudConfig, Export
from emo.data.dataset import Dataset
from emo.errors import ExportError, ServeError
from emo.models import split_network


def run(config: CloudConfig, test: Dataset) -> None:
    """Exports the untrained network with one overlay to a temporary file. Takes seconds; leaves nothing. Our own networks
    at the default opset are left out: EMO's tests export them.

    Raises ExportError."""
    spec = config.model
    if spec.name in split_network.BUILT_IN and config.export.opset == Export().opset:
        return
    overlay = {"edge": split_network.weights(split_network.overlay(spec, 0))} if config.overlays.edges else {}
    parts = ensemble.parts(split_network.weights(split_network.network(spec, 0)), overlay)
    shares = {part: 1.0 for part in parts if part != TRUNK}
    scale, combine = (test.mean, test.std), config.overlays.combine
    try:
        module = ensemble.build(spec, parts, *scale, dtype(test), combine, shares)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export(module, path, spec.input, test.classes, {}, config.export.opset)
            known_answer.make(path)
    except OSError as error:
        raise ExportError(f"{error.filename}: cannot be written: {error.strerror}") from error
    except (ExportError, ServeError) as error:
        raise ExportError(f"the ensemble could not be exported at the end: {error}") from error
