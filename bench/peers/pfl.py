"""bench.simulate's workload in pfl-research. Prints a JSON list: seconds of each round. With torchrun, in parallel."""

import itertools
import json
import os
import time
from pathlib import Path

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn.functional import cross_entropy

from bench.simulate import dataset, plan
from emo.data.batches import tensors
from emo.models import split_network
from emo.parser import Parser
from testbed import node_configs
from testbed.plan import Plan


class Net(nn.Module):
    """With what pfl asks of a module."""

    def __init__(self, asked: Plan) -> None:
        super().__init__()
        self.net = split_network.network(asked.model, asked.seed)

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.net.train()
        return cross_entropy(self.net(inputs), labels)

    @torch.no_grad()
    def metrics(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(self.loss(inputs, labels).item() * len(labels), len(labels))}


class Clock(TrainingProcessCallback):  # type: ignore[misc]  # pfl has no types that mypy could see
    def __init__(self) -> None:
        self.ends = [time.perf_counter()]

    def after_central_iteration(self, *_: object, **__: object) -> tuple[bool, Metrics]:
        self.ends.append(time.perf_counter())
        return False, Metrics()


def main() -> None:
    parser = Parser()
    parser.add_argument("--rounds", type=int, required=True, help="FL rounds")
    parser.add_argument("--samples", type=int, required=True, help="of one device")
    parser.add_argument("--threads", type=int, help="torch's (default: its own choice)")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies (default: none)")
    args = parser.parse_args()
    asked = plan(args.samples)
    if args.threads:
        torch.set_num_threads(args.threads)
    training = dataset(args.data_dir)
    shares = node_configs.shares(asked, training.labels)

    def user(device: int) -> Dataset:
        return Dataset(raw_data=list(tensors(training, shares[device])))

    devices = FederatedDataset(user, get_user_sampler("random", list(range(asked.devices))))
    net, clock = Net(asked), Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=args.rounds,
            evaluation_frequency=args.rounds + 1,  # in the first round only
            train_cohort_size=asked.per_round,
            val_cohort_size=None,
        ),
        SimulatedBackend(devices, devices),
        PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_num_epochs=asked.training.epochs,
            local_learning_rate=asked.training.lr,
            local_batch_size=asked.batch_size,
        ),
        callbacks=[clock],
    )
    if os.environ.get("RANK", "0") == "0":
        ends = clock.ends
        print(json.dumps([after - before for before, after in itertools.pairwise(ends)]))


if __name__ == "__main__":
    main()
