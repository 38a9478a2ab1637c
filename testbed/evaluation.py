"""How often networks that share a trunk are right, each by itself and as the ensemble that is served.

Knows modules and a test set. Knows no round and no process.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from emo.data.batches import tensors
from emo.data.dataset import Dataset
from emo.models.split_network import inference

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
        for name, found in chances.items():
            right[name] += int((found.argmax(1) == labels).sum())
    return {name: 100 * count / len(test.labels) for name, count in right.items()}
