"""Conformal sets from one noisy pass, under attack, beside those of Monte Carlo smoothing.

``python -m benchmarks.papers.sets --scale small`` trains a network on the digits under Gaussian
noise, moves every test image by two attacks, and splits the test images at random into calibration
and use, over and over. One attack climbs the mean score of an image's own label; the other knows a
threshold, and climbs the probability that the score ends above it. Coverage, unattacked and
attacked, and the sizes of the sets, of three ways:

- one pass: :mod:`rsfl.conformal`, one draw for each image;
- Monte Carlo: the smoothed score of Gendler et al. (2022), a mean over many draws through
  Phi^-1, whose threshold moves by r / sigma. As published its error of sampling is not paid for;
- the same, paid: Hoeffding's bound on each mean, and a share of the level for it (Yan et al.,
  2024).

``--scale mnist`` does it on MNIST (``--data``). What has been computed is in ``--out`` and is not
computed again.
"""

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.papers.one_model import network
from benchmarks.papers.recipe import mnist, once, options, report, word
from rsfl import attacks, conformal, demo, noise, smooth, train

SEED, COVERAGE = 0, 0.9
DIFFERS = (
    "the score is 1 - softmax of the label, the networks are small, and the attacks are gradients "
    "of the mean score and of a smooth step at a threshold",
)


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    images: int
    epochs: int
    trained: int | None
    draws: int
    splits: int
    attack: int
    radii: tuple[float, ...] = (0.125, 0.25)
    sigma: float = 0.25


SCALES = {
    "smoke": Scale(120, 6, None, 32, 4, 4, radii=(0.125,)),
    "small": Scale(400, 20, None, 256, 200, 20),
    "mnist": Scale(2000, 4, 20_000, 128, 100, 10),
}
WAYS = ("one pass", "Monte Carlo", "paid")
POINTS = ("clean", "attacked", "threshold known")


@dataclass(frozen=True, kw_only=True)
class AboveThreshold(attacks.SmoothAdvPGD):
    """Projected gradient ascent on the probability that the score of the label ends above a
    threshold, through a smooth step of a given width.

    Args:
        threshold: Where sets end.
        width: Of the step. A narrow one is what is asked for, and has no slope far from it.
    """

    threshold: float
    width: float = 0.1

    @override
    def _gradient(
        self, smoother: smooth.Smoother, x: Tensor, y: Tensor, point: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point.requires_grad_()
            logits = attacks.logits_at(smoother, x, point, noise)
            score = 1 - logits.softmax(2)[:, torch.arange(len(y)), y]
            above = ((score - self.threshold) / self.width).sigmoid().mean(0).sum()
            (gradient,) = torch.autograd.grad(above, point)
        return gradient, logits.detach()


def model_and_images(scale: Scale, name: str, data: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A network that was trained under the noise, test images and labels."""
    if name == "mnist":
        x, y, x_test, y_test = (
            part.float() if i % 2 == 0 else part for i, part in enumerate(mnist(data))
        )
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            model: nn.Module = network(28)
        batches = train.Batches(x[: scale.trained], y[: scale.trained], 100)
        loss = train.CrossEntropy(noise.Gaussian(scale.sigma))
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        train.fit(model, batches, loss, optimizer, epochs=scale.epochs)
    else:
        x, y, x_test, y_test = demo.digits()
        some = slice(scale.trained)
        model = demo.trained(scale.sigma, x[some], y[some], epochs=scale.epochs)
    return model, x_test[: scale.images], y_test[: scale.images]


@torch.no_grad()
def scores(model: nn.Module, x: Tensor) -> Tensor:
    """1 - softmax of every class."""
    return 1 - torch.cat([model(part).softmax(1) for part in x.split(1000)]).double()


def smoothed(model: nn.Module, x: Tensor, law: noise.Law, draws: int, seed: int) -> Tensor:
    """The mean score of every class over draws of noise."""
    total = torch.zeros(len(x), 10, dtype=torch.float64)
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed * 100_003 + draw)
        total += scores(model, x + law.sample(tuple(x.shape), generator=generator))
    return total / draws


def quantile(values: Tensor, level: float) -> float:
    """The order statistic of conformal calibration."""
    rank = math.ceil((len(values) + 1) * level)
    return math.inf if rank > len(values) else float(values.sort().values[rank - 1])


def monte_carlo(
    calibration: Tensor, use: Tensor, radius: float, sigma: float, draws: int, *, paid: bool
) -> Tensor:
    """The sets (B, K) from mean scores: of calibration images' own labels, and of all classes."""
    spent = 0.001 if paid else 0.0
    error = math.sqrt(math.log(1 / spent) / (2 * draws)) if paid else 0.0
    top = quantile(calibration, COVERAGE + 2 * spent)
    if top + error >= 1:
        return torch.ones_like(use, dtype=torch.bool)
    limit = stats.norm.ppf(top + error) + radius / sigma
    return torch.from_numpy(stats.norm.ppf(np.clip(use.numpy() - error, 0, 1)) <= limit)


def moved(smoother: smooth.Smoother, x: Tensor, y: Tensor, attack: attacks.Attack) -> Tensor:
    """Where an attack takes the images."""
    generator = torch.Generator().manual_seed(SEED)
    parts = zip(x.split(100), y.split(100), strict=True)
    return torch.cat([attack(smoother, *part, generator=generator).point for part in parts])


def outcome(sets: Tensor, y: Tensor) -> list[float]:
    """Coverage and mean size."""
    rows = torch.arange(len(y))
    return [sets[rows, y].double().mean().item(), sets.double().sum(1).mean().item()]


def compared(scale: Scale, name: str, data: Any, radius: float) -> dict[str, Any]:
    """Coverage and size of each way, unattacked and attacked: a row for each split."""
    began = time.perf_counter()
    model, x, y = model_and_images(scale, name, data)
    model.eval()
    fast = smooth.prepared(model, x[:4])
    law = noise.Gaussian(scale.sigma)
    smoother = smooth.Smoother(model, law, 10)
    everything = torch.arange(len(x)), y
    drawn = conformal.noisy(x, law, purpose="calibration", seed=scale.splits, start=0)
    whole = scores(fast, drawn)
    known = conformal.calibrate(whole[everything], law, coverage=COVERAGE, radius=radius).value
    how: dict[str, Any] = {"epsilon": radius, "steps": scale.attack, "samples": 16, "box": None}
    climbs = attacks.SmoothAdvPGD(**how), AboveThreshold(**how, threshold=known)
    points = dict(zip(POINTS, (x, *(moved(smoother, x, y, one) for one in climbs)), strict=True))
    means = {key: smoothed(fast, at, law, scale.draws, 1) for key, at in points.items()}
    own = smoothed(fast, x, law, scale.draws, 2)
    found: dict[str, list[list[float]]] = {}
    for split in range(scale.splits):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(split))
        first, rest = order[: len(x) // 2], order[len(x) // 2 :]
        drawn = conformal.noisy(x[first], law, purpose="calibration", seed=split, start=0)
        seen = scores(fast, drawn)
        threshold = conformal.calibrate(
            seen[torch.arange(len(first)), y[first]], law, coverage=COVERAGE, radius=radius
        )
        for key, at in points.items():
            drawn = conformal.noisy(at[rest], law, purpose="use", seed=split, start=0)
            told = scores(fast, drawn)
            sets = {"one pass": threshold.labels(told)}
            for paid in (False, True):
                sets["paid" if paid else "Monte Carlo"] = monte_carlo(
                    own[first, y[first]],
                    means[key][rest],
                    radius,
                    scale.sigma,
                    scale.draws,
                    paid=paid,
                )
            for way, held in sets.items():
                found.setdefault(f"{way}, {key}", []).append(outcome(held, y[rest]))
    distance = max(float((at - x).flatten(1).norm(dim=1).max()) for at in points.values())
    return {
        "level": conformal.level(law, COVERAGE, radius),
        "distance": distance,
        "outcomes": {way: np.mean(rows, axis=0).tolist() for way, rows in found.items()},
        "spread": {way: np.std(rows, axis=0).tolist() for way, rows in found.items()},
        "seconds": time.perf_counter() - began,
    }


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """Compute what is missing, print the table, and say what agrees."""
    chosen = options(__doc__, "sets", SCALES).parse_args(arguments)
    scale, began = SCALES[chosen.scale], time.perf_counter()
    out, verdicts = chosen.out / chosen.scale, {}
    print(f"{'radius':>7} {'way':<13}{'passes':>7}  coverage and size, {'; '.join(POINTS)}")
    for radius in scale.radii:
        case = {"scale": asdict(scale), "radius": radius}
        compute = partial(compared, scale, chosen.scale, chosen.data, radius)
        found = once(out / "cases", case, compute)
        for way in WAYS:
            passes = 1 if way == "one pass" else scale.draws
            figures = [found["outcomes"][f"{way}, {key}"] for key in POINTS]
            text = "; ".join(f"{coverage:.4f} {size:6.3f}" for coverage, size in figures)
            print(f"{radius:>7} {way:<13}{passes:>7}  {text}")
        # All splits share the images: the error is that of one use of all of them, and of the
        # calibration, whose level counts at the slope of the curve.
        half = scale.images // 2
        slope = (
            noise.Gaussian(scale.sigma).tradeoff(found["level"], radius)
            - noise.Gaussian(scale.sigma).tradeoff(found["level"] - 1e-4, radius)
        ) / 1e-4
        at = found["level"]
        error = math.sqrt(COVERAGE * (1 - COVERAGE) / half + slope**2 * at * (1 - at) / half)
        kept = min(found["outcomes"][f"one pass, {key}"][0] for key in POINTS)
        verdicts[
            f"radius {radius}: coverage under attack is at least {COVERAGE} within its "
            f"binomial error"
        ] = word(kept >= COVERAGE - 2 * error)
        verdicts[f"radius {radius}: the attack stays inside"] = word(
            found["distance"] <= radius * (1 + 1e-6)
        )
    report(out, chosen.scale, DIFFERS, verdicts, time.perf_counter() - began)
    return verdicts


if __name__ == "__main__":
    main()
