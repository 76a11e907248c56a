"""Does federated training make clients more robust than training alone? Digits, 20 clients, four
training modes.

The questions of Alfarra et al. (2022, figures 1, 2 and 5) on scikit-learn's digits: local training,
federated training, a nominal federated model personalised with augmentation, and a mixture of local
and global models, certified against pixel noise, rotation and translation on each client's own test
samples. Prints a table, and saves one panel a perturbation: mean over the clients, and the band
from the worst to the best. A backdoored run ends it.

Run ``python -m benchmarks.fed_digits --out DIRECTORY`` (about half a minute).
"""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rsfl import fed, train
from rsfl.deform import Rotation, Translation
from rsfl.fed import poison
from rsfl.noise import Gaussian, Law
from rsfl.smooth import DeformationSmoother, Smoother

CLIENTS, ROUNDS, VOTES, SEED = 20, 40, 1000, 0
LAWS: dict[str, tuple[Law, str]] = {
    "pixels": (Gaussian(0.25), "l2 radius"),
    "rotation": (Rotation(0.3 * math.pi), "angle in radians"),
    "translation": (Translation(0.2), "l2 radius in half images"),
}
Samples = Mapping[int, tuple[Tensor, Tensor]]


def digits() -> tuple[Tensor, Tensor]:
    """The images in [0, 1], shape (1797, 1, 8, 8), in a random order, and their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(SEED).permutation(len(bunch.target))
    x = torch.tensor(bunch.images[order] / 16, dtype=torch.float32)[:, None]
    return x, torch.tensor(bunch.target[order])


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def trainer(law: Law | None = None, mixture: float | None = None) -> fed.SGD:
    # A mixture weighs the local loss by lambda: the step makes up for it, so that all modes learn
    # as fast.
    return fed.SGD(
        lr=0.2 / (mixture or 1),
        batch_size=16,
        epochs=2,
        mixture=mixture,
        loss=train.CrossEntropy(law),
    )


def modes(
    x: Tensor, y: Tensor, parts: list[np.ndarray], law: Law
) -> dict[str, nn.Module | Mapping[int, nn.Module]]:
    """The models that each training mode ends with, all of them after as many passes over the
    data."""

    def federated(how: fed.SGD, rounds: int = ROUNDS) -> fed.Result:
        return fed.Server(network(), fed.clients(x, y, parts, how), seed=SEED).run(rounds)

    tuning = ROUNDS // 5
    nominal = federated(trainer(), ROUNDS - tuning).model
    alone = fed.clients(x, y, parts, trainer(law))
    return {
        "local": fed.personalise(network(), alone, ROUNDS, seed=SEED),
        "federated": federated(trainer(law)).model,
        "personalised": fed.personalise(nominal, alone, tuning, after=ROUNDS - tuning, seed=SEED),
        "mixture 0.9": federated(trainer(law, 0.9)).models,
    }


def curve(law: Law, radii: np.ndarray) -> Callable[[nn.Module, Tensor, Tensor], np.ndarray]:
    """Certified accuracy of a model at the given radii: right, and certified at least so far."""

    def metric(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
        smoother = (
            Smoother(model, law, 10)
            if isinstance(law, Gaussian)
            else DeformationSmoother(model, law, 10)
        )
        found = smoother.certify(x, n0=100, n=VOTES, seed=SEED)
        radius = torch.where(found.label == y, found.radius, -1.0).numpy()
        return (radius[:, None] >= radii).mean(axis=0)

    return metric


def certify(x: Tensor, y: Tensor, out: Path | None) -> None:
    train, test = range(1437), range(1437, 1797)
    parts = fed.partition.equal(len(train), CLIENTS, seed=SEED)
    own = [part + len(train) for part in fed.partition.equal(len(test), CLIENTS, seed=SEED)]
    samples: Samples = {k: (x[part], y[part]) for k, part in enumerate(own)}
    curves: dict[str, dict[str, fed.PerClient]] = {}
    for name, (law, unit) in LAWS.items():
        largest = law.radius((0.001) ** (1 / VOTES))
        radii = np.linspace(0, largest, 41)
        shown = [0, 10, 20, 30]
        print(
            f"\n{name}, {law}: certified accuracy, mean (min-max) over {CLIENTS} clients, by {unit}"
        )
        print(f"{'':14}" + "".join(f"{math.floor(radii[i] * 1e3) / 1e3:>18.3f}" for i in shown))
        curves[name] = {}
        for mode, models in modes(x, y, parts, law).items():
            found = curves[name][mode] = fed.per_client(models, samples, curve(law, radii))
            cells = [f"{found.mean[i]:.2f} ({found.min[i]:.2f}-{found.max[i]:.2f})" for i in shown]
            print(f"{mode:14}" + "".join(f"{cell:>18}" for cell in cells))
    if out is not None:
        plot(curves, out / "fed_digits.png")


def plot(curves: Mapping[str, Mapping[str, fed.PerClient]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(4.5 * len(curves), 3.6), sharey=True)
    for axis, (name, by_mode) in zip(axes, curves.items(), strict=True):
        law, unit = LAWS[name]
        radii = np.linspace(0, law.radius((0.001) ** (1 / VOTES)), 41)
        for mode, found in by_mode.items():
            (line,) = axis.plot(radii, found.mean, label=mode)
            axis.fill_between(
                radii, found.min, found.max, color=line.get_color(), alpha=0.12, linewidth=0
            )
        axis.set(title=name, xlabel=unit)
    axes[0].set(ylabel="certified accuracy", ylim=(0, 1))
    axes[-1].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"\n{path}")


def backdoor(x: Tensor, y: Tensor) -> None:
    """One of 20 clients poisons half of each batch and sends five times its update: does the
    trigger work?"""
    parts = fed.partition.equal(1437, CLIENTS, seed=SEED)
    members = fed.clients(x, y, parts, trainer())
    pattern = poison.pixel_patch((1, 8, 8), 1.0)
    data = poison.Backdoor(pattern, target=0, per_batch=8)
    attacks = {3: fed.Attack(data=data, update=poison.Scale(5.0))}
    test_x, test_y = x[1437:], y[1437:]
    others = test_y != 0
    triggered = test_x[others] + pattern.to(test_x)
    print("\none poisoned client of 20, patch of l2 norm 1:   accuracy   attack success")
    rules = {
        "no attack": (fed.Server(network(), members, seed=SEED), {}),
        "undefended": (fed.Server(network(), members, seed=SEED), attacks),
        "updates clipped at 0.5": (
            fed.Server(network(), members, update_clip=0.5, seed=SEED),
            attacks,
        ),
        "geometric median": (
            fed.Server(network(), members, aggregate=fed.GeometricMedian(), seed=SEED),
            attacks,
        ),
    }
    for name, (server, who) in rules.items():
        model = server.run(ROUNDS, attacks=who).model
        hit = fed.accuracy(model, triggered, torch.zeros_like(test_y[others]))
        print(f"{name:46} {fed.accuracy(model, test_x, test_y):10.3f} {hit:16.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="directory for the plot")
    arguments = parser.parse_args()
    x, y = digits()
    certify(x, y, arguments.out)
    backdoor(x, y)


if __name__ == "__main__":
    main()
