"""The training data that the cloud keeps: `data.heldout` of every class, on no device and not in the test set.

What an ensemble is fitted on comes from here, and nowhere else.
"""

from emo.config import Data, Model
from emo.data import registry
from emo.data.dataset import Dataset
from emo.data.partition import holdout
from emo.errors import ExportError


def kept(spec: Data, model: Model) -> Dataset:
    """Raises ExportError where `spec` keeps nothing, DataError as `data.training`."""
    train = registry.training(spec.model_copy(update={"heldout": 0.0}), model, own=False)
    _, rows = holdout(train.labels, spec.seed, spec.heldout)
    if not len(rows):
        raise ExportError(
            f"{spec.name}: no held-out data, which overlays.fit and --fit need: set data.heldout (0.1, say) before the "
            "run, on the cloud and on every device that shares its dataset"
        )
    return train.of(rows)
