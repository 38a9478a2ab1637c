"""What an edge builds before it connects; `emo doctor` tries it."""

import torch

from edge_app.overlay import checkpoint
from edge_app.overlay.trainer import Trainer
from emo.config import EdgeConfig
from emo.models import split_network
from emo.ops import trial


def ready(config: EdgeConfig) -> int:
    """The number of its overlay's parameters; it is built anew for each run. Raises ModelError if it cannot be built."""
    overlay = split_network.overlay(config.model, config.overlay.seed)
    return sum(parameter.numel() for parameter in overlay.parameters())


def step(config: EdgeConfig, device: str = "cpu") -> None:
    """One step of an overlay like its own, on as few samples as a step can have. Raises what the user's network raises."""
    model, settings = config.model, config.overlay.model_copy(update={"compile": False})
    trainer = Trainer(split_network.overlay(model, settings.seed), settings, device)
    count = max(2, settings.batches)
    labels = torch.arange(count) % model.classes
    trainer.step([(torch.zeros(count, *split_network.split_shape(model)), labels)])


def described(config: EdgeConfig) -> str:
    """What was built, in words. Raises as `ready` and `step`, and ConfigError where another version of EMO
    wrote the checkpoint that it would go on from."""
    checkpoint.check_version(config.cache.dir)
    torch.set_num_threads(config.threads)
    step(config)
    split = list(split_network.split_shape(config.model))
    return f"{config.model.name}'s overlay, {ready(config):,} parameters, takes activations {split}"


if __name__ == "__main__":
    trial.main(EdgeConfig, described)
