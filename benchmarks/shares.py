"""Where the time goes that the table's misses are about: parts of a call by themselves, beside the
whole."""

from collections.abc import Callable, Iterator, Mapping
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import row as rows_of
from benchmarks.fed import TRAINER, equal
from benchmarks.networks import small_cnn
from benchmarks.row import Row, turns
from rsfl import _heap, demo, fed, orbit
from rsfl._draws import rekey
from rsfl.noise import Gaussian
from rsfl.smooth import GaussianSmoother, OrbitPlan, ParameterSmoother, Votes

SIGMA = 0.25


def rows() -> Iterator[Row]:
    yield from vote()
    yield from certificate()
    yield from noisy_model()
    yield from step()
    yield from voting()


def parts(
    what: str, calls: Mapping[str, Callable[[], object]], each: int, unit: str, repeats: int = 5
) -> Iterator[Row]:
    """The time of each call, divided by so many."""
    scale = {"us": 1e6, "ms": 1e3}[unit] / each
    for name, taken in turns(calls, repeats=repeats).items():
        yield Row(f"{what}: {name}", scale * median(taken), unit)


def vote() -> Iterator[Row]:
    """One vote of the small network, in batches of 200: what is added to the forward calls."""
    model, x, law = small_cnn().eval(), torch.rand(1, 1, 28, 28), Gaussian(SIGMA)
    smoother, batch = GaussianSmoother(model, SIGMA, 10), torch.rand(200, 1, 28, 28)
    generator = torch.Generator()

    def stage(draw: bool, add: bool) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad(), _heap.kept():
                for block in range(100):
                    if draw:
                        noise = law.sample((100, 1, 28, 28), generator=generator)
                    if add:
                        half = batch[100 * (block % 2) :][:100]
                        torch.add(x, noise, out=half)
                    if block % 2:
                        model(batch)

        return call

    calls: dict[str, Callable[[], object]] = {
        "forward calls": stage(False, False),
        "forward calls and drawing": stage(True, False),
        "forward calls, drawing and adding": stage(True, True),
        "all": lambda: smoother.votes(x, 10_000),
    }
    yield from parts("a vote of the small CNN", calls, 10_000, "us")


def certificate() -> Iterator[Row]:
    """One certificate of a linear model of four inputs, n = 1000."""
    smoother, x, law = (
        GaussianSmoother(nn.Linear(4, 3), SIGMA, 3),
        torch.rand(1, 4),
        Gaussian(SIGMA),
    )
    ballot, generator = smoother.ballot(x, n=1000), torch.Generator()
    few, many = torch.rand(100, 4), torch.rand(1000, 4)

    def drawn() -> None:
        for block in range(11):
            law.sample((100, 4), generator=rekey(generator, 0, 0, 1, block))

    def forward() -> None:
        with torch.no_grad():
            smoother.model(few)
            smoother.model(many)

    calls: dict[str, Callable[[], object]] = {
        "keys and draws": drawn,
        "forward calls": forward,
        "reading the votes": lambda: ballot.certificate(0.001),
        "all": lambda: smoother.certify(x, n=1000),
    }
    yield from parts("a certificate of a tiny model", calls, 1, "ms", 100)


def noisy_model() -> Iterator[Row]:
    """One noisy MLP over 10,000 inputs; a model may write into its inputs, so each gets its own."""
    x, first, second = torch.rand(10_000, 784), torch.rand(784, 64), torch.rand(64, 10)
    network = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    smoother = ParameterSmoother(network, 0.01, 10)

    def products() -> None:
        for part in torch.split(x, 1000):
            (part @ first).relu_() @ second

    def copies() -> None:
        with _heap.kept():
            for part in torch.split(x, 1000):
                part.clone()

    calls: dict[str, Callable[[], object]] = {
        "products": lambda: [products() for _ in range(10)],
        "copies of the inputs": lambda: [copies() for _ in range(10)],
        "drawing": lambda: smoother.noisy(0, 10, seed=0),
        "all": lambda: smoother.votes(x, 10),
    }
    yield from parts("a noisy small MLP", calls, 10, "ms")


def step() -> Iterator[Row]:
    """One step of one of 100 stacked logistic clients on 784 inputs, batches of 30."""
    members = equal(100, 200, 784)
    server = fed.Server(nn.Linear(784, 10), members)
    x, weight = torch.rand(100, 30, 784), torch.rand(100, 10, 784)
    pull, data = torch.rand(100, 10, 30), members[0].x
    where = torch.randint(len(data), (3000,))
    steps = TRAINER.steps or 0

    def products() -> None:
        for _ in range(steps):
            weight @ x.mT
            pull @ x

    def gathered() -> None:
        with _heap.kept():
            for _ in range(steps):
                data.index_select(0, where)

    calls: dict[str, Callable[[], object]] = {
        "gathering its batch": gathered,
        "two products": products,
        "all": lambda: server.run(1),
    }
    yield from parts("a step of a stacked logistic client", calls, 100 * steps, "us")


class _Timed(GaussianSmoother):
    """Knows how long it voted."""

    voted = 0.0

    def count(self, *arguments: Any, **how: Any) -> Votes:
        clock = process_time if rows_of.BY_PROCESSOR else perf_counter
        began = clock()
        try:
            return super().count(*arguments, **how)
        finally:
            self.voted += clock() - began


def voting() -> Iterator[Row]:
    """How much of an orbit's certificate is voting; the rest is geometry."""
    torch.manual_seed(0)
    x: Tensor = demo.digits()[0][:2].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    smoother = _Timed(small_cnn(size=16).eval(), SIGMA, 10)
    plan, family = OrbitPlan(n_max=20_000), orbit.Rotations(0.5)
    took = turns({"": lambda: smoother.orbit_ballot(x, family, plan=plan)}, repeats=1)[""][0]
    yield Row("an orbit of two pictures: all", took, "s")
    yield Row("an orbit of two pictures: voting", smoother.voted / 2, "s")  # warmed up once
