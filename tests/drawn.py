"""A network whose overlay draws in training as much as its buffer `p` says, so that one process can have others draw too."""

import torch
from torch import nn

from emo.config import Model
from emo.models import split_network
from emo.models.layers import Parts


class Dropped(nn.Module):
    """Zeros with probability `p`, which is 0 at first: then nothing changes but the generator's state. `unused` has no part
    in the result."""

    def __init__(self):
        super().__init__()
        self.register_buffer("p", torch.zeros(()))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, inputs):
        return inputs * (torch.rand_like(inputs) >= self.p) if self.training else inputs


def net(spec: Model) -> Parts:
    made = split_network.parts(spec.model_copy(update={"name": "cnn"}))
    return made._replace(overlay=lambda: nn.Sequential(Dropped(), made.overlay()))
