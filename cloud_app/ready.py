"""What the cloud reads and builds before it connects; `emo doctor` tries it."""

import torch

from cloud_app.ensemble import dry_run, int8
from cloud_app.ensemble.model import dtype
from cloud_app.ensemble.publish import judges
from cloud_app.rounds import checkpoint
from cloud_app.serving.repository import Repository
from emo.config import CloudConfig
from emo.data import heldout, registry
from emo.data.dataset import Dataset
from emo.models import split_network
from emo.models.split_network import SplitNetwork
from emo.models.state import Layout, layout
from emo.ops import trial


def ready(config: CloudConfig) -> tuple[Dataset, SplitNetwork, Layout]:
    """The test set, the network of the first round, and what each of its tensors is. Raises EmoError on what does not fit,
    also where only the end of the run would need it."""
    test = registry.testing(config.data, config.model)
    if config.overlays.fit != "none":
        heldout.kept(config.data, config.model)
    if config.export.int8:
        int8.must_be_enough(judges(config.data, config.model)[1])
    Repository(config.export.models).check(config.export.name, test.classes, config.model.input, dtype(test))
    net = split_network.network(config.model, config.rounds.seed)
    split_network.overlay(config.model, config.rounds.seed)
    return test, net, layout(net, config.model.input)


def described(config: CloudConfig) -> str:
    """What was built, in words. Raises as `ready`, and ConfigError when an interrupted run had other settings."""
    torch.set_num_threads(config.threads)
    test, net, tensors = ready(config)
    checkpoint.agree(config.state_dir / "run", config, split_network.weights(net), tensors)
    dry_run.run(config, test)
    count = sum(parameter.numel() for parameter in net.parameters())
    classes = len(test.classes)
    return (
        f"{config.model.name}, {count:,} parameters, takes the {len(test.labels):,} test samples in {classes} classes"
    )


if __name__ == "__main__":
    trial.main(CloudConfig, described)
