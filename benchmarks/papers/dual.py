"""Dual smoothing beside each single sigma: what a certified choice of the noise gains, and costs.

``python -m benchmarks.papers.dual --scale small`` trains a network of its own on the digits for
each sigma, counts votes on test images, and lets a smoothed selector choose among pairs of sigmas.
The selector is a network that learned, under its own noise, which sigma reaches farthest on pilot
votes about the training images (:func:`rsfl.smooth.best_levels`). Beside certified accuracies of
the single sigmas and of the dual classifier stands that of the best level of each image, chosen by
looking at its label: no selector can do better.

``--scale mnist`` does it on MNIST (``--data``). What has been computed is in ``--out`` and is not
computed again.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.papers.one_model import network
from benchmarks.papers.recipe import mnist, once, options, report, word
from rsfl import demo, noise, runs, smooth, train

SEED, ALPHA = 0, 0.001
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
DIFFERS = (
    "small networks on small pictures, and a selector trained on the answers of pilot votes; the "
    "published gains are of CIFAR-10",
)


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    images: int
    trained: int | None
    epochs: int
    pilots: int
    votes: int
    sigmas: tuple[float, ...]
    pairs: tuple[tuple[float, float], ...]
    learned: int = 1500
    selector: float = 0.5


SCALES = {
    "smoke": Scale(40, None, 3, 100, 200, (0.25, 0.5), ((0.25, 0.5),)),
    "small": Scale(200, None, 20, 100, 3000, (0.12, 0.25, 0.5), ((0.12, 0.25), (0.25, 0.5))),
    "mnist": Scale(
        400, 20_000, 4, 100, 2000, (0.25, 0.5, 1.0), ((0.25, 0.5), (0.5, 1.0)), learned=2000
    ),
}
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def images(scale: Scale, name: str, data: Path) -> Data:
    """Training and test images, float32, and their labels."""
    x, y, x_test, y_test = mnist(data) if name == "mnist" else demo.digits()
    some, tested = slice(scale.trained), slice(scale.images)
    return x[some].float(), y[some], x_test[tested].float(), y_test[tested]


def fitted(x: Tensor, y: Tensor, sigma: float, classes: int, epochs: int) -> nn.Module:
    """A network that learned labels, or levels, under noise, ready for many votes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = network(28) if x.shape[-1] == 28 else demo.network()
        last = model[-1]
        model[-1] = nn.Linear(last.in_features, classes)
    loss, optimizer = (
        train.CrossEntropy(noise.Gaussian(sigma)),
        torch.optim.Adam(model.parameters(), lr=2e-3),
    )
    train.fit(model, train.Batches(x, y, 100), loss, optimizer, epochs=epochs)
    return smooth.prepared(model, x[:4])


class Levels:
    """Of one sigma each: the votes on test images, and pilot votes on training images."""

    def __init__(self, scale: Scale, data: Data) -> None:
        self.scale, (self.x, self.y, self.x_test, self.y_test) = scale, data
        self.few = slice(scale.learned)  # whose pilot votes are what a selector learns
        self.ballots, self.pilots = {}, {}
        for sigma in scale.sigmas:
            model = fitted(self.x, self.y, sigma, 10, scale.epochs)
            smoother = smooth.GaussianSmoother(model, sigma, 10)
            self.ballots[sigma] = smoother.ballot(self.x_test, n=scale.votes)
            pilot = smoother.ballot(self.x[self.few], n=scale.pilots, seed=1)
            self.pilots[sigma] = pilot.certificate(0.05)

    def single(self, sigma: float) -> list[float]:
        """Certified accuracy of one sigma."""
        return self._accuracy(self.ballots[sigma].certificate(ALPHA))

    def best(self, sigmas: Sequence[float]) -> list[float]:
        """That of the best level of each image, chosen by looking at its label."""
        found = [self.ballots[sigma].certificate(ALPHA / 2) for sigma in sigmas]
        radii = torch.stack([one.radius.where(one.label == self.y_test, -1.0) for one in found])
        reach = radii.amax(dim=0)
        return [float((reach >= max(r, 1e-9)).double().mean()) for r in RADII]

    def dual(self, sigmas: Sequence[float]) -> tuple[list[float], dict[str, float]]:
        """That of a selector's choice, and what it chose."""
        wanted = smooth.best_levels([self.pilots[s] for s in sigmas], self.y[self.few])
        own = self.scale.selector
        model = fitted(self.x[self.few], wanted, own, len(sigmas), self.scale.epochs)
        selector = smooth.GaussianSmoother(model, own, len(sigmas))
        selected = selector.certify(self.x_test, n=self.scale.votes, alpha=ALPHA / 2)
        levels = []
        for level, sigma in enumerate(sigmas):
            rows = (selected.label == level).nonzero().flatten()
            found = self.ballots[sigma].certificate(ALPHA / 2)[rows]
            levels.append(found if len(rows) else None)
        certificate = smooth.DualCertificate(selected, tuple(levels))
        shares = {
            f"level {s}": float((certificate.level == i).double().mean())
            for i, s in enumerate(sigmas)
        }
        shares["selector abstains"] = float(selected.abstained.double().mean())
        return self._accuracy(certificate), shares

    def _accuracy(self, certificate: runs.Certified) -> list[float]:
        found: list[float] = runs.certified_accuracy(
            certificate, self.y_test.numpy(), RADII
        ).tolist()
        return found


def compared(scale: Scale, name: str, data: Path) -> dict[str, Any]:
    """Certified accuracies at the radii, of every way."""
    began = time.perf_counter()
    levels = Levels(scale, images(scale, name, data))
    found: dict[str, Any] = {"single": {str(s): levels.single(s) for s in scale.sigmas}}
    for pair in scale.pairs:
        accuracy, shares = levels.dual(pair)
        found[f"{pair}"] = {"dual": accuracy, "best": levels.best(pair), "shares": shares}
    return found | {"seconds": time.perf_counter() - began}


def main(arguments: list[str] | None = None) -> dict[str, str]:
    """Compute what is missing, print the table, and say what agrees."""
    chosen = options(__doc__, "dual", SCALES).parse_args(arguments)
    scale, began = SCALES[chosen.scale], time.perf_counter()
    out = chosen.out / chosen.scale
    found = once(out / "cases", asdict(scale), partial(compared, scale, chosen.scale, chosen.data))
    print(f"{'certified accuracy at r =':<28}" + "".join(f"{r:>8}" for r in RADII))

    def row(name: str, shares: Sequence[float]) -> None:
        print(f"{name:<28}" + "".join(f"{share:>8.4f}" for share in shares))

    for sigma, shares in found["single"].items():
        row(f"sigma = {sigma}", shares)
    verdicts = {}
    for pair in scale.pairs:
        case = found[f"{pair}"]
        row(f"one of {pair}, dual", case["dual"])
        row(f"one of {pair}, best", case["best"])
        print("  " + ", ".join(f"{name} {share:.3f}" for name, share in case["shares"].items()))
        singles = [found["single"][str(sigma)] for sigma in pair]
        pairs = zip(case["dual"], case["best"], strict=True)
        verdicts[f"{pair}: no selector does better than the best level of each image"] = word(
            all(dual <= best for dual, best in pairs)
        )
        gains = [dual > max(several) for dual, *several in zip(case["dual"], *singles, strict=True)]
        verdicts[f"{pair}: more than either sigma at some radius"] = word(any(gains))
    report(out, chosen.scale, DIFFERS, verdicts, time.perf_counter() - began)
    return verdicts


if __name__ == "__main__":
    main()
