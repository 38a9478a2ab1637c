"""What an edge builds before it connects; `emo doctor` tries it."""

import torch

from emo import models, trial
from emo.config import EdgeConfig


def ready(config: EdgeConfig) -> int:
    """Parameters of its overlay, which is built anew for each run. Raises ModelError on one that cannot be."""
    overlay = models.overlay(config.model, config.overlay.seed)
    return sum(parameter.numel() for parameter in overlay.parameters())


def said(config: EdgeConfig) -> str:
    """For people. Raises as `ready`."""
    torch.set_num_threads(config.threads)
    split = list(models.split_shape(config.model))
    return f"{config.model.name}'s overlay, {ready(config):,} parameters, takes activations {split}"


if __name__ == "__main__":
    trial.main(EdgeConfig, said)
