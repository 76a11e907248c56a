"""Rounds of stacked training beside one-by-one training: 100 clients, 20 steps each in batches of
30."""

from collections.abc import Iterator
from statistics import median

import torch
from torch import nn

from benchmarks.row import Row, ratio, seconds, turns
from rsfl import fed

CLIENTS, SAMPLES, HIDDEN, ROUNDS = 100, 200, 32, 4


def rows() -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    trainer = fed.SGD(lr=0.05, batch_size=30, steps=20)
    size = CLIENTS * SAMPLES
    for features in (64, 784):
        x, y = (
            torch.rand(size, features, generator=generator),
            torch.randint(10, (size,), generator=generator),
        )
        members = fed.clients(x, y, fed.partition.equal(size, CLIENTS), trainer)
        for name, model, target in (
            (f"logistic {features}-10", nn.Linear(features, 10), 5),
            (
                f"MLP {features}-{HIDDEN}-10",
                nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)),
                2,
            ),
        ):
            servers = {flag: fed.Server(model, members, stacked=flag) for flag in (False, True)}
            calls = {
                str(flag): lambda server=server: server.run(ROUNDS)
                for flag, server in servers.items()
            }
            times = turns(calls, repeats=3)
            round_, alone = (median(times[kind]) / ROUNDS for kind in ("True", "False"))
            detail = f"{round_:.3f} s a round, one by one {alone:.3f}"
            gain = ratio(times["False"], times["True"])
            yield Row(
                f"{name}, 100 clients: stacked, times one by one",
                gain,
                "times",
                target,
                detail=detail,
            )

    x, y = (
        torch.rand(50_000, 784, generator=generator),
        torch.randint(10, (50_000,), generator=generator),
    )
    parts = fed.partition.major_class(y.numpy(), 1000, 500, 0.5)
    large = fed.Server(nn.Linear(784, 10), fed.clients(x, y, parts, trainer), fraction=0.1)
    spent = seconds(lambda: large.run(ROUNDS)) / ROUNDS
    yield Row("logistic 784-10, 1000 clients of 500, a tenth a round", spent, "s a round")
