"""Votes of noisy models: exact, in one product, and beside a loop that reloads the weights of one
model at a time."""

import copy
from collections.abc import Iterator
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.apart import apart
from benchmarks.row import Row, ratio, seconds, turns
from rsfl import bounds
from rsfl.smooth import ParameterSmoother

MODELS, INPUTS, BATCH, SIGMA = 1000, 10_000, 400, 0.01


def reference(model: nn.Module, x: Tensor, classes: int, models: int = MODELS) -> np.ndarray:
    """The plain loop: noisy weights are loaded into a copy, which is asked batch by batch; Python
    keeps the counts."""
    clean = {name: value.clone() for name, value in model.state_dict().items()}
    other = copy.deepcopy(model)
    counts = np.zeros((len(x), classes), dtype=int)
    rows = np.arange(len(x))
    with torch.no_grad():
        for _ in range(models):
            other.load_state_dict(
                {name: value + SIGMA * torch.randn_like(value) for name, value in clean.items()}
            )
            labels = [
                other(x[i : i + BATCH]).argmax(dim=1).numpy() for i in range(0, len(x), BATCH)
            ]
            counts[rows, np.concatenate(labels)] += 1
    return counts


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    x = torch.rand(INPUTS, 784) * (torch.rand(INPUTS, 784) < 0.2)
    logistic = nn.Linear(784, 10)
    small = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))

    weights = torch.rand(784, 10 * MODELS)

    def product() -> None:
        for part in torch.split(x, 1000):
            part @ weights

    with apart(partial(reference, logistic, x, 10)) as slow:
        ours = partial(ParameterSmoother(logistic, SIGMA, 10).votes, x, MODELS)
        times = turns({"slow": slow, "fast": ours, "bare": product}, repeats=3)
    gain, fast = ratio(times["slow"], times["fast"]), median(times["fast"])
    detail = f"{fast:.1f} s, bare matrix product {median(times['bare']):.1f} s"
    yield Row(
        "1000 noisy logistic models: times the reloading loop", gain, "times", 3, detail=detail
    )

    norms = (x.double().square().sum(dim=1) + 1).sqrt().numpy()
    for classes in (10, 47):
        layer = nn.Linear(784, classes)
        logits = layer(x).detach().double().numpy()
        exact = seconds(
            lambda logits=logits: bounds.linear_vote_bounds(logits, norms, sigma=SIGMA), repeats=1
        )
        yield Row(
            f"exact linear votes, 10,000 inputs x {classes} classes",
            exact,
            "s",
            5 if classes > 10 else 1.5,
            False,
        )
        if classes == 10:
            yield Row("exact linear votes: times 1000 sampled models", fast / exact, "times")

    few = MODELS // 10
    first, second = torch.rand(784, 64), torch.rand(64, 10)

    def products() -> None:
        for _ in range(few):
            for part in torch.split(x, 1000):
                (part @ first).relu_() @ second

    ours = partial(ParameterSmoother(small, SIGMA, 10).votes, x, few)
    with apart(partial(reference, small, x, 10, few)) as slow:
        times = turns({"slow": slow, "fast": ours, "bare": products}, repeats=3)
    detail = f"{median(times['fast']):.1f} s, bare matrix products {median(times['bare']):.1f} s"
    gain = ratio(times["slow"], times["fast"])
    yield Row(f"{few} noisy small MLPs: times the reloading loop", gain, "times", detail=detail)
