"""A small overlay, batches for it, and trainers after so many steps."""

import torch
from torch import nn

from edge_app.overlay.batch_filter import FilterState
from edge_app.overlay.checkpoint import NAME
from edge_app.overlay.trainer import Trainer
from emo.config import Overlay

SETTINGS = Overlay(lr=0.1, average=0.9, checkpoint_steps=7, mixup=0.3, flip=True)
SAMPLER = {"random": {"state": 2**100}, "keys": [["device-0", 3, 0.25]], "never": None}
KNOWN = FilterState(losses={"device-0": 0.5}, distrusted={"device-0"})


def network(hidden=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, hidden, 3), nn.BatchNorm2d(hidden), nn.ReLU(), nn.Flatten(), nn.Linear(16 * hidden, 4)
    )


def batches(step):
    generator = torch.Generator().manual_seed(step)
    labels = torch.arange(16) % 4
    return [(torch.randn(n, 3, 6, 6, generator=generator) + labels[:n, None, None, None], labels[:n]) for n in (16, 9)]


def trained(steps=0, hidden=8):
    trainer = Trainer(network(hidden), SETTINGS)
    for step in range(steps):
        trainer.step(batches(step))
    return trainer


def saved(file, state, run="run-1"):
    file.save(run, state, SAMPLER, KNOWN)
    file.close()
    return file.folder / NAME
