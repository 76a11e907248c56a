"""``python -m rsfl.demo``: a small end-to-end run on the digits that scikit-learn bundles."""

import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rsfl import bounds, fed, noise, runs, train
from rsfl._progress import progress
from rsfl.fed import poison
from rsfl.smooth import Certificate, GaussianSmoother, ParameterSmoother

__all__ = ["digits", "frozen_features", "main", "network", "trained"]

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
            bounds.hoeffding_lower(first / n, n, alpha),
            bounds.hoeffding_upper(second / n, n, alpha),
        )
        radii = [
            bounds.lecuyer_radius(p_a, sigma=1.0),
            bounds.li_radius(p_a, sigma=1.0),
            bounds.cohen_radius(p_a, sigma=1.0),
            bounds.cohen_radius(both, p_b, sigma=1.0),
            np.sqrt(
                2 * published
            ),  # the distance of two Gaussians at that divergence, in units of sigma
            bounds.cohen_radius(first / n, second / n, sigma=1.0),
        ]
        rows.append(
            f"{first:>6} : {second:<4}"
            + "".join(f"{np.floor(r * 1e3) / 1e3:>12.3f}" for r in radii)
        )
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loss = train.CrossEntropy(noise.Gaussian(sigma))
    train.fit(model, train.Batches(x, y, 100), loss, optimizer, epochs=epochs)
    return model


class _Frozen(nn.Module):
    """What a network sees in an image before its last layer."""

    def __init__(self, extractor: nn.Module, public: Tensor) -> None:
        super().__init__()
        self.extractor = extractor
        with torch.no_grad():
            self.register_buffer("centre", extractor(public).double().mean(dim=0))

    centre: Tensor

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return functional.normalize(self.extractor(x).double() - self.centre)


def frozen_features(model: nn.Module, public: Tensor) -> nn.Module:
    """What the network sees in an image before its last layer: centred on public images, of norm 1,
    in float64."""
    return _Frozen(cast(nn.Sequential, model)[:-1], public).eval()


def federation(features: Tensor, labels: Tensor, *, clients: int = 40) -> fed.Server:
    """Clients with equal shares of the data, who train a linear model together under the CRFL
    recipe."""
    model = nn.Linear(features.shape[1], 10).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    parts = fed.partition.equal(len(features), clients, seed=0)
    members = fed.clients(features, labels, parts, fed.SGD(lr=1.5, batch_size=100, decay=0.01))
    return fed.Server(model, members, clip=5.0, noise_std=0.01)


def certified(smoother: GaussianSmoother, x: Tensor, *, n: int) -> Certificate:
    """Certificates of all inputs, a few at a time so that the bar moves."""
    parts = []
    with progress(len(x), shown=True, what="certifying", unit="input") as bar:
        for chunk in torch.split(torch.arange(len(x)), 20):
            parts.append(smoother.certify(x[chunk], n=n, index=chunk))
            bar.update(len(chunk))
    return Certificate.cat(parts)


def smoothed_digits(
    x_train: Tensor, y_train: Tensor, x: Tensor, y: Tensor
) -> dict[str, tuple[Certificate, Tensor]]:
    """Train with noise, certify the test set, print the table; the certificates by name, with the
    labels."""
    curves: dict[str, tuple[Certificate, Tensor]] = {}
    print(f"{'sigma':>6}" + "".join(f"{f'r = {r:g}':>10}" for r in RADII) + f"{'abstained':>11}")
    for sigma in SIGMAS:
        smoother = GaussianSmoother(trained(sigma, x_train, y_train), sigma, 10)
        certificate = certified(smoother, x, n=2_000)
        curves[f"sigma = {sigma}"] = (certificate, y)
        accuracy = runs.certified_accuracy(certificate, y.numpy(), RADII)
        abstained = int(certificate.abstained.sum())
        print(f"{sigma:>6}" + "".join(f"{share:>10.3f}" for share in accuracy) + f"{abstained:>11}")

    at = smoother.certify_at(x, 0.5, n_max=10_000)
    share = float((at.label == y).double().mean())
    print(
        f"\n   Asked only whether r >= 0.5 at sigma = {sigma}: {share:.3f} with "
        f"{at.n.double().mean():.0f} votes each"
    )
    return curves


def poisoned_digits(
    x_train: Tensor, y_train: Tensor, x: Tensor, y: Tensor
) -> dict[str, tuple[Certificate, Tensor]]:
    """Train federated, attack, certify against the clients, print the table; certificates of
    backdoor norms by name."""
    public, rounds, attacked = 300, 40, 36
    features = frozen_features(trained(0.1, x_train[:public], y_train[:public]), x_train[:public])
    server = federation(features(x_train[public:]), y_train[public:])
    inputs = features(x)
    run = server.run(rounds)
    pattern = torch.zeros(inputs.shape[1], dtype=torch.float64)
    pattern[:4] = 0.25  # of norm 1/2

    def accuracy(model: nn.Module) -> float:
        return float((model(inputs).argmax(dim=1) == y).double().mean())

    def success(model: nn.Module) -> float:
        return float((model(inputs[y != 0] + pattern).argmax(dim=1) == 0).double().mean())

    replaces = poison.Attack(
        [rounds], poison.Backdoor(pattern, 0), poison.Scale(len(server.clients))
    )
    attacked_run = server.run(rounds, attacks={0: replaces})
    print(f"   {'':44}{'accuracy':>10}{'backdoor works':>16}")
    for name, result in (
        ("honest clients", run),
        ("one client replaces the model in the end", attacked_run),
    ):
        print(f"   {name:44}{accuracy(result.model):>10.3f}{success(result.model):>16.3f}")

    backdoor = bounds.FeatureThreat(clients=[0], rounds=[attacked], norm=0.1, per_batch=5)
    threats = {
        f"backdoor of norm 0.1, 5 a batch, round {attacked}": backdoor,
        f"any samples of one client, round {attacked}": bounds.SampleThreat(
            clients=[0], rounds=[attacked], input_norm=1.5
        ),
        "removal: no single client decided it": bounds.RemovalThreat(at_most=1),
        "removal: no two clients decided it": bounds.RemovalThreat(at_most=2),
    }
    print(f"\n   {'certified against':44}{'accuracy':>10}{'all labels':>12}")

    def row(name: str, certificate: Certificate) -> None:
        right, made = (
            (certificate.label == y).double().mean(),
            (~certificate.abstained).double().mean(),
        )
        print(f"   {name:44}{float(right):>10.3f}{float(made):>12.3f}")

    votes = ParameterSmoother(run.model, sigma=0.05, num_classes=10).certify(inputs)
    published = fed.published(votes, run.ledger, backdoor)
    row("  as published, same backdoor", published)
    sound = {
        name: fed.certify(run.model, inputs, run.ledger, threat) for name, threat in threats.items()
    }
    for name, certificate in sound.items():
        row(name, certificate)
    first = fed.largest_backdoors(next(iter(sound.values())), run.ledger)
    return {
        "CRFL as published": (fed.largest_backdoors(published, run.ledger), y),
        "for this model": (first, y),
    }


def main(out: str = "demo-out") -> None:
    """Print what the bounds certify, train on noisy digits, certify the test set, draw the
    curve."""
    began = time.perf_counter()
    torch.set_num_threads(1)  # the networks are so small that threads would wait more than work
    print("1. Radius in units of sigma from 1000 votes, at alpha = 0.001 (floored).")
    print(
        "   CRFL: the published divergence bound as a distance. exact: were the observed shares "
        "the probabilities.\n"
    )
    print(bounds_table())

    print(
        "\n2. Handwritten digits, trained with noise and certified in l2 (400 test images, n = "
        "2,000).\n"
    )
    data = digits()
    inputs = smoothed_digits(*data)

    print(
        "\n3. A linear model on frozen features, trained by 40 clients (published votes: alpha = "
        "0.001, the rest: 0).\n"
    )
    training = poisoned_digits(*data)

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    path = Path(out)
    path.mkdir(exist_ok=True)
    for name, title, curves in (
        ("certified-accuracy", "Digits, Gaussian smoothing", inputs),
        ("poisoned-client", "Digits, one poisoned client of 40", training),
    ):
        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        most = 1.0 if curves is training else None
        runs.plot_certified_accuracy(curves, ax=axes, title=title, radius=most)
        figure.savefig(path / f"{name}.png", dpi=150)
    print(f"\nPlots in {path}/. {time.perf_counter() - began:.0f} s in all.")


if __name__ == "__main__":
    main()
