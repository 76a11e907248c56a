"""``python -m rsfl.demo``: the library's main job in small, on the digits that scikit-learn bundles."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rsfl import bounds, runs
from rsfl.smooth import Certificate, GaussianSmoother

__all__ = ["main"]

SIGMAS = (0.12, 0.25, 0.5)
RADII = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


def bounds_table() -> str:
    """Radii that the same votes certify under the bounds of the field, in units of the noise."""
    n, alpha = 1000, 0.001
    names = ("Lecuyer", "Li", "Cohen", "two bounds", "CRFL", "exact")
    rows = [f"{'votes':>13}" + "".join(f"{name:>12}" for name in names)]
    for first, second in ((1000, 0), (990, 10), (900, 50), (600, 100), (480, 200)):
        p_a = bounds.clopper_pearson_lower(first, n, alpha)
        both = bounds.clopper_pearson_lower(first, n, alpha / 2)
        p_b = min(bounds.clopper_pearson_upper(second, n, alpha / 2), 1 - both)
        published = bounds.kl_budget(
            bounds.hoeffding_lower(first / n, n, alpha), bounds.hoeffding_upper(second / n, n, alpha)
        )
        radii = [
            bounds.lecuyer_radius(p_a, sigma=1.0),
            bounds.li_radius(p_a, sigma=1.0),
            bounds.cohen_radius(p_a, sigma=1.0),
            bounds.cohen_radius(both, p_b, sigma=1.0),
            np.sqrt(2 * published),  # the distance of two Gaussians at that divergence, in units of sigma
            bounds.cohen_radius(first / n, second / n, sigma=1.0),
        ]
        rows.append(f"{first:>6} : {second:<4}" + "".join(f"{np.floor(r * 1e3) / 1e3:>12.3f}" for r in radii))
    return "\n".join(rows)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (B, 1, 8, 8) in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = order[:400], order[400:]
    return x[train], y[train], x[test], y[test]


def network() -> nn.Module:
    """A small convolutional network for 8 x 8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def trained(sigma: float, x: Tensor, y: Tensor, *, epochs: int = 40) -> nn.Module:
    """A network that learned on noisy images: what is voted on later is what it saw."""
    torch.manual_seed(0)
    model = network()
    smoother = GaussianSmoother(model, sigma, 10)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in tqdm(range(epochs), desc=f"training, sigma = {sigma}", leave=False):
        for batch in torch.split(torch.randperm(len(x)), 100):
            loss = -smoother.probabilities(x[batch], 1).gather(1, y[batch, None]).log().mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return model


def certified(smoother: GaussianSmoother, x: Tensor, *, n: int) -> Certificate:
    """Certificates of all inputs, a few at a time so that the bar moves."""
    parts = [
        smoother.certify(x[chunk], n=n, index=chunk)
        for chunk in tqdm(torch.split(torch.arange(len(x)), 20), desc="certifying", leave=False)
    ]
    return Certificate.cat(parts)


def main(out: str = "demo-out") -> None:
    """Print what the bounds certify, train on noisy digits, certify the test set, draw the curve."""
    began = time.perf_counter()
    print("1. Radius in units of sigma from 1000 votes, at alpha = 0.001 (floored).")
    print("   CRFL: the published divergence bound as a distance. exact: were the observed shares the probabilities.\n")
    print(bounds_table())

    print("\n2. Handwritten digits, trained with noise and certified in l2 (400 test images, n = 2,000).\n")
    x_train, y_train, x, y = digits()
    curves = {}
    print(f"{'sigma':>6}" + "".join(f"{f'r = {r:g}':>10}" for r in RADII) + f"{'abstained':>11}")
    for sigma in SIGMAS:
        smoother = GaussianSmoother(trained(sigma, x_train, y_train), sigma, 10)
        certificate = certified(smoother, x, n=2_000)
        curves[f"sigma = {sigma}"] = (certificate, y.numpy())
        accuracy = runs.certified_accuracy(certificate, y.numpy(), RADII)
        abstained = int(certificate.abstained.sum())
        print(f"{sigma:>6}" + "".join(f"{share:>10.3f}" for share in accuracy) + f"{abstained:>11}")

    at = smoother.certify_at(x, 0.5, n_max=10_000)
    share = float((at.label == y).double().mean())
    print(
        f"\n   Asked only whether r >= 0.5 at sigma = {sigma}: {share:.3f} with {at.n.double().mean():.0f} votes each"
    )

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    path = Path(out) / "certified-accuracy.png"
    path.parent.mkdir(exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    runs.plot_certified_accuracy(curves, ax=axes, title="Digits, Gaussian smoothing")
    figure.savefig(path, dpi=150)
    print(f"\nPlot: {path}. {time.perf_counter() - began:.0f} s in all.")


if __name__ == "__main__":
    main()
