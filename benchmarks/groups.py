"""Models of a hundred disjoint groups of clients: trained abreast, beside one client after another;
and their votes, beside a plain loop over the models."""

from collections.abc import Iterator
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.networks import small_cnn
from benchmarks.row import Row, ratio, turns
from rsfl import fed

GROUPS, CLIENTS, SAMPLES, CLASSES = 100, 1000, 60, 10
MLP, HEAD, CNN = "MLP 64-32-10", "linear head of 128 features", "small CNN, 28 x 28"
SHAPES = {MLP: (64,), HEAD: (128,), CNN: (1, 28, 28)}
TRAINERS = {
    MLP: fed.SGD(lr=0.05, batch_size=20, epochs=2, momentum=0.9),
    HEAD: fed.SGD(lr=0.05, batch_size=None, steps=10),
}
ROSTER = dict.fromkeys(range(CLIENTS), 0)  # all clients are registered, and alike


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    for name in TRAINERS:
        yield from trained(name)
    for name in SHAPES:
        for inputs in (1, 20, 400):
            yield asked(name, inputs)


def network(name: str) -> nn.Module:
    if name == MLP:
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    return nn.Linear(128, CLASSES) if name == HEAD else small_cnn(size=28)


def trained(name: str) -> Iterator[Row]:
    """One round of all the groups, with all that goes with it."""
    size = CLIENTS * SAMPLES
    x, y = torch.rand(size, *SHAPES[name]), torch.randint(CLASSES, (size,))
    members = fed.clients(x, y, fed.partition.equal(size, CLIENTS), TRAINERS[name])
    train = partial(fed.train_groups, groups=GROUPS, rounds=1, num_classes=CLASSES)
    abreast = fed.Server(network(name), members)
    calls = {
        "one by one": partial(train, fed.Server(network(name), members, stacked=False)),
        "roster": partial(train, abreast, roster=ROSTER),
        "hash": partial(train, abreast),
    }
    times = turns(calls, repeats=3)
    alone = median(times["one by one"])
    for kind in ("roster", "hash"):
        yield Row(
            f"{name}, groups by {kind}: abreast, times one by one",
            ratio(times["one by one"], times[kind]),
            "times",
            4,
            detail=f"{median(times[kind]):.2f} s a round, one by one {alone:.2f}",
        )


def asked(name: str, inputs: int) -> Row:
    """The votes of all the groups on so many inputs."""
    models = tuple(network(name).eval() for _ in range(GROUPS))
    vote = fed.GroupVote(models, tuple((i,) for i in range(GROUPS)), CLASSES)
    x = torch.rand(inputs, *SHAPES[name])
    if not torch.equal(vote.votes(x), by_hand(models, x)):
        raise RuntimeError(f"votes of {name} must be those of a plain loop")
    often = 1 if name == CNN else 400 // inputs
    calls = {
        "ours": lambda: [vote.votes(x) for _ in range(often)],
        "loop": lambda: [by_hand(models, x) for _ in range(often)],
    }
    times = turns(calls)
    return Row(
        f"votes of {GROUPS} models, {name}, {inputs} inputs a call: times a plain loop",
        ratio(times["loop"], times["ours"]),
        "times",
        4 if name == HEAD else None,
        detail=f"{1e3 * median(times['ours']) / often:.2f} ms",
    )


def by_hand(models: tuple[nn.Module, ...], x: Tensor) -> Tensor:
    """Votes as they are counted by hand."""
    votes, every = torch.zeros(len(x), CLASSES, dtype=torch.int64), torch.arange(len(x))
    with torch.no_grad():
        for model in models:
            votes[every, model(x).argmax(dim=1)] += 1
    return votes
