"""Orbits and joint certificates beside votes of the same networks; ledgers of many clients."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from benchmarks.networks import small_cnn
from benchmarks.row import Row, ratio, seconds, turns
from rsfl import bounds, demo, fed, orbit
from rsfl.noise import Gaussian
from rsfl.smooth import GaussianSmoother, JointSmoother, OrbitPlan

SIGMA = 0.25


def rows() -> Iterator[Row]:
    yield from orbits()
    yield from joint()
    yield from ledgers()


def orbits() -> Iterator[Row]:
    """Votes about the pictures of an orbit, beside as many about one picture."""
    torch.manual_seed(0)
    x = demo.digits()[0][:2].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    model = small_cnn(size=16).eval()
    smoother = GaussianSmoother(model, SIGMA, 10)
    plan = OrbitPlan(n_max=20_000)
    ballot = smoother.orbit_ballot(x, orbit.Rotations(0.5), plan=plan)
    n = int(ballot.votes.sum())
    calls = {
        "orbit": lambda: smoother.orbit_ballot(x, orbit.Rotations(0.5), plan=plan),
        "votes": lambda: smoother.votes(x, n // len(x)),
    }
    times = turns(calls, repeats=3)
    detail = f"{n / median(times['orbit']):.0f} votes/s, {n} votes"
    share = ratio(times["votes"], times["orbit"])
    name = "rotations by 29 degrees, small CNN, 16 x 16: throughput over votes about one picture"
    yield Row(name, share, "times", detail=detail)


def joint() -> Iterator[Row]:
    """Votes of 10 groups about noisy inputs, beside votes of one model whose forward pass is
    theirs."""
    torch.manual_seed(0)
    x, y = torch.rand(400, 1, 8, 8), torch.randint(10, (400,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    server = fed.Server(model, fed.clients(x, y, fed.partition.equal(400, 10)))
    vote = fed.train_groups(server, groups=10, rounds=1, num_classes=10)
    smoother = JointSmoother(fed.GroupJudge(vote), Gaussian(SIGMA))
    models = [one for one in vote.models if one is not None]
    inputs = torch.rand(200, 1, 8, 8)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(5 * 2000 // len(inputs)):
                for one in models:
                    one(inputs)

    calls = {"joint": lambda: smoother.ballot(x[:5], n0=100, n=1900), "bare": bare}
    times = turns(calls, repeats=3)
    share = ratio(times["bare"], times["joint"])
    detail = f"{10_000 / median(times['joint']):.0f} votes/s"
    yield Row(
        "joint, 10 groups of small MLPs: throughput over their bare forward passes",
        share,
        "times",
        detail=detail,
    )


def ledgers() -> Iterator[Row]:
    """A ledger of 100 rounds of 1000 clients."""
    x, y = torch.rand(5000, 4, dtype=torch.float64), torch.randint(3, (5000,))
    parts = [np.arange(5 * i, 5 * i + 5) for i in range(1000)]
    members = fed.clients(x, y, parts, fed.SGD(batch_size=5, decay=0.1))
    run = fed.Server(nn.Linear(4, 3).double(), members, update_clip=0.1).run(100)
    ledger = run.ledger
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.json"
        saved = seconds(lambda: ledger.save(path), repeats=2)
        loaded = seconds(lambda: fed.Ledger.load(path), repeats=2)
    threat = bounds.ClientThreat(at_most=5)
    inputs = torch.rand(10_000, 4, dtype=torch.float64)
    held = seconds(lambda: fed.certify(run.model, inputs, ledger, threat), repeats=2)
    for what, took, aim in (
        ("saved", saved, 2),
        ("loaded", loaded, 2),
        ("10,000 predictions certified", held, 5),
    ):
        yield Row(f"ledger of 100 rounds x 1000 clients: {what}", took, "s", aim, at_least=False)
