"""Rounds of stacked training beside one-by-one training, 20 steps each in batches of 30; and rounds
of many clients."""

import resource
from collections.abc import Iterator, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.apart import alone
from benchmarks.networks import small_cnn
from benchmarks.row import Row, ratio, seconds, turns
from rsfl import fed

HIDDEN, ROUNDS = 32, 4
TRAINER = fed.SGD(lr=0.05, batch_size=30, steps=20)


def rows() -> Iterator[Row]:
    yield from stacks()
    yield from networks()
    yield from many()


def beside(
    name: str, model: nn.Module, members: Sequence[fed.Client], rounds: int, target: float = 5
) -> Row:
    """Rounds of clients in stacks, beside the same one by one."""
    servers = {flag: fed.Server(model, members, stacked=flag) for flag in (False, True)}
    calls = {
        str(flag): lambda server=server: server.run(rounds) for flag, server in servers.items()
    }
    times = turns(calls, repeats=3)
    together, alone = (median(times[kind]) / rounds for kind in ("True", "False"))
    return Row(
        f"{name}, {len(members)} clients: stacked, times one by one",
        ratio(times["False"], times["True"]),
        "times",
        target,
        detail=f"{together:.3f} s a round, one by one {alone:.3f}",
    )


def data(size: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(size, *shape, generator=generator)
    return x, torch.randint(10, (size,), generator=generator)


def equal(clients: int, samples: int, *shape: int) -> Sequence[fed.Client]:
    size = clients * samples
    return fed.clients(*data(size, *shape), fed.partition.equal(size, clients), TRAINER)


def stacks() -> Iterator[Row]:
    for features in (64, 784):
        members = equal(100, 200, features)
        for name, model, target in (
            (f"logistic {features}-10", nn.Linear(features, 10), 5),
            (
                f"MLP {features}-{HIDDEN}-10",
                nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)),
                2,
            ),
        ):
            yield beside(name, model, members, ROUNDS, target)
    yield beside("logistic 784-10", nn.Linear(784, 10), equal(1000, 50, 784), 1)


def networks() -> Iterator[Row]:
    """Small convolutional networks: of digits they are stacked, of larger images one by one."""
    for side in (8, 28):
        members = equal(100, 50, 1, side, side)
        yield beside(f"small CNN, {side} x {side}", small_cnn(size=side), members, 1)


def many() -> Iterator[Row]:
    x, y = data(50_000, 784)
    parts = fed.partition.major_class(y.numpy(), 1000, 500, 0.5)
    large = fed.Server(nn.Linear(784, 10), fed.clients(x, y, parts, TRAINER), fraction=0.1)
    spent = seconds(lambda: large.run(ROUNDS)) / ROUNDS
    yield Row("logistic 784-10, 1000 clients of 500, a tenth a round", spent, "s a round")
    spent, peak = alone(_round_of_many)
    name = "logistic 784-10, 10,000 clients of 10 samples"
    yield Row(f"{name}: a round", spent, "s")
    told = f"of which {100_000 * 784 * 4 / 2**30:.2f} are the inputs"
    yield Row(f"{name}: memory of the process", peak, "GiB", 2, at_least=False, detail=told)


def _round_of_many() -> tuple[float, float]:
    """Seconds of a round of 10,000 clients, and the most memory that this process ever had."""
    members = fed.clients(
        *data(100_000, 784), fed.partition.equal(100_000, 10_000), fed.SGD(lr=0.05, batch_size=10)
    )
    server = fed.Server(nn.Linear(784, 10), members)
    spent = turns({"": lambda: server.run(1)}, repeats=1, warmup=0)[""][0]
    return spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
