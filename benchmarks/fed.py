"""Stacked training beside one-by-one training: seconds a round, and their ratio, printed.

Run ``python benchmarks/fed.py`` (about a minute); ``--large`` adds 150 rounds of 1000 devices, 10 % of them a round,
20 batches of 30 each.
"""

import argparse
from time import perf_counter

import torch
from torch import nn

from rsfl import fed


def data(samples: int, features: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, features, generator=generator), torch.randint(10, (samples,), generator=generator)


def logistic(features: int) -> nn.Module:
    return nn.Linear(features, 10)


def perceptron(features: int, hidden: int = 32) -> nn.Module:
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def seconds(server: fed.Server, rounds: int, repeats: int = 3) -> float:
    server.run(1, progress=False)
    times = []
    for _ in range(repeats):
        begin = perf_counter()
        server.run(rounds, progress=False)
        times.append((perf_counter() - begin) / rounds)
    return min(times)


def compare(name: str, model: nn.Module, features: int, clients: int, samples: int, trainer: fed.SGD) -> None:
    x, y = data(clients * samples, features)
    members = fed.clients(x, y, fed.partition.equal(len(x), clients), trainer)
    alone, stacked = (seconds(fed.Server(model, members, stacked=flag), 2) for flag in (False, True))
    print(f"{name:42} one by one {alone:7.3f} s, stacked {stacked:7.3f} s a round: {alone / stacked:5.1f} times")


def thousand(features: int, rounds: int) -> None:
    x, y = data(50_000, features)
    parts = fed.partition.major_class(y.numpy(), 1000, 500, 0.5)
    trainer = fed.SGD(lr=0.01, batch_size=30, steps=20)
    server = fed.Server(logistic(features), fed.clients(x, y, parts, trainer), fraction=0.1)
    begin = perf_counter()
    server.run(rounds, progress=False)
    print(
        f"1000 devices x 500 samples of {features}, 10 % a round, 20 batches of 30: {rounds} rounds in "
        f"{perf_counter() - begin:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true")
    large = parser.parse_args().large
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    trainer = fed.SGD(lr=0.05, batch_size=30, steps=20)
    for features in (64, 784):
        compare(f"logistic {features}-10, 100 clients, 20 steps", logistic(features), features, 100, 200, trainer)
    for features in (64, 784):
        compare(f"MLP {features}-32-10, 100 clients, 20 steps", perceptron(features), features, 100, 200, trainer)
    if large:
        thousand(784, 150)


if __name__ == "__main__":
    main()
