"""bench.simulate's workload in Flower's simulation. Prints a JSON list: seconds of each round.

Written as Flower's own PyTorch tutorial is: the data are loaded once a process, a client makes its tensors and trains.
"""

import importlib
import itertools
import json
import sys
import time
from functools import lru_cache
from pathlib import Path

import ray
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn.functional import cross_entropy

from bench.simulate import dataset, plan
from emo.data.batches import FixedBatches
from emo.models import split_network
from emo.parser import Parser
from testbed import node_configs
from testbed.plan import Plan


def main() -> None:
    parser = Parser()
    parser.add_argument("--rounds", type=int, required=True, help="FL rounds")
    parser.add_argument("--samples", type=int, required=True, help="of one device")
    parser.add_argument("--workers", type=int, required=True, help="processes")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies (default: none)")
    args = parser.parse_args()
    asked, folder = plan(args.samples), args.data_dir
    ends, trained = [time.perf_counter()], list[int]()

    def evaluated(number: int, _arrays: ArrayRecord) -> None:
        ends[number:] = [time.perf_counter()]  # number 0: before the first round

    def serve(grid: Grid, _context: Context) -> None:
        first = ArrayRecord(split_network.network(asked.model, asked.seed).state_dict())
        share = asked.per_round / asked.devices
        strategy = FedAvg(fraction_train=share, fraction_evaluate=0.0, min_available_nodes=asked.devices)
        result = strategy.start(grid, first, num_rounds=args.rounds, evaluate_fn=evaluated)
        trained.extend(number for number, metrics in result.train_metrics_clientapp.items() if metrics)

    def train(message: Message, context: Context) -> Message:
        return _train(message, int(context.node_config["partition-id"]), asked, folder)

    client, server = ClientApp(), ServerApp()
    client.train()(train)
    server.main()(serve)
    resources = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": args.workers},
    }
    run_simulation(server, client, asked.devices, backend_config=resources)
    ray.shutdown()
    if len(trained) < args.rounds:  # clients that fail are left out without an error
        sys.exit(f"Flower: clients have trained in {len(trained)} of {args.rounds} rounds")
    print(json.dumps([after - before for before, after in itertools.pairwise(ends)]))


def _train(message: Message, device: int, asked: Plan, folder: Path | None) -> Message:
    batches = _batches(asked, folder)[device]
    net = split_network.network(asked.model, asked.seed)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=asked.training.lr)
    net.train()
    for j in batches.order(0, 0):
        batch = batches.batch(j)
        optimizer.zero_grad()
        cross_entropy(net(batch.inputs), batch.labels).backward()  # type: ignore[no-untyped-call]  # torch leaves backward() untyped
        optimizer.step()
    records = {
        "arrays": ArrayRecord(net.state_dict()),
        "metrics": MetricRecord({"num-examples": batches.samples, "batches": len(batches)}),
    }
    return Message(content=RecordDict(records), reply_to=message)


@lru_cache(maxsize=1)
def _batches(asked: Plan, folder: Path | None) -> list[FixedBatches]:
    torch.set_num_threads(1)
    training = dataset(folder)
    return [node_configs.batches(asked, training, rows) for rows in node_configs.shares(asked, training.labels)]


if __name__ == "__main__":
    # What the clients are given names the module it is from, which they must find.
    importlib.import_module("bench.peers.flower").main()
