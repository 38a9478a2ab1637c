"""The export at the end of a run, tried before its first round: nobody learns after a night that it cannot be had."""

from pathlib import Path
from tempfile import TemporaryDirectory

from cloud_app import ensemble, selftest
from cloud_app.ensemble import TRUNK
from cloud_app.export import export
from cloud_app.publish import dtype
from emo import models
from emo.config import CloudConfig, Export
from emo.data import Dataset
from emo.errors import ExportError, ServeError


def run(config: CloudConfig, test: Dataset) -> None:
    """Exports the untrained network with one overlay to a temporary file. Takes seconds; leaves nothing. Our own networks
    at the default opset are left out: EMO's tests export them.

    Raises ExportError."""
    spec = config.model
    if spec.name in models.BUILT_IN and config.export.opset == Export().opset:
        return
    overlay = {"edge": models.weights(models.overlay(spec, 0))} if config.overlays.edges else {}
    parts = ensemble.parts(models.weights(models.network(spec, 0)), overlay)
    shares = {part: 1.0 for part in parts if part != TRUNK}
    scale, combine = (test.mean, test.std), config.overlays.combine
    try:
        module = ensemble.build(spec, parts, *scale, dtype(test), combine, shares)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export(module, path, spec.input, test.classes, {}, config.export.opset)
            selftest.make(path)
    except OSError as error:
        raise ExportError(f"{error.filename}: cannot be written: {error.strerror}") from error
    except (ExportError, ServeError) as error:
        raise ExportError(f"the ensemble could not be exported at the end: {error}") from error
