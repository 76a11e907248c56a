"""``python -m rsfl.demo``: four certificates on the digits that scikit-learn bundles, with their
pictures."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rsfl import bounds, fed, noise, orbit, runs, train
from rsfl._progress import progress
from rsfl._text import floored
from rsfl.smooth import (
    Certificate,
    GaussianSmoother,
    JointCertificate,
    JointSmoother,
    OrbitCertificate,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "digits",
    "federation",
    "frozen_features",
    "main",
    "network",
    "plot_turns",
    "trained",
]

SIGMAS = (0.12, 0.25, 0.5)
RADII = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
TURNS = orbit.Rotations(math.radians(20))
ROUNDS = 5  # of federated training
Data = tuple[Tensor, Tensor, Tensor, Tensor]


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


def trained(law: float | noise.Law, x: Tensor, y: Tensor, *, epochs: int = 40) -> nn.Module:
    """A network that learned on noisy images, by a law or the sigma of a Gaussian: what is voted on
    later is what it saw."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loss = train.CrossEntropy(law if isinstance(law, noise.Law) else noise.Gaussian(law))
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


def federation(
    law: noise.Law, x: Tensor, y: Tensor, *, clients: int = 100, public: int = 400
) -> tuple[fed.Server, nn.Module]:
    """Clients with equal shares of the images, who are to train a linear head together on frozen
    features; and the features.

    By the settings under which certificates say most: features and the first head are public, and
    a client's part in a round is one full step, at nearly the largest rate that does not expand.

    Args:
        law: The noise of the votes. Clients train on four noisy copies of each of their images.
        x: Images (N, 1, 8, 8).
        y: Their labels (N,).
        clients: Number of clients.
        public: The first so many images are public: on them the network of the features trains, and
            a head that the clients begin with.
    """
    features = frozen_features(trained(law, x[:public], y[:public]), x[:public])
    own, labels, copies = x[public:], y[public:], 4
    draws = torch.Generator().manual_seed(0)
    noisy = [own + law.sample(own.shape, generator=draws) for _ in range(copies)]
    parts = [
        np.concatenate([part + copy * len(own) for copy in range(copies)])
        for part in fed.partition.equal(len(own), clients)
    ]
    trainer = fed.SGD(lr=1.99, batch_size=None)  # below 2 / (|| (z, 1) ||^2 / 2), as || z || is 1
    inputs = features(torch.cat(noisy))
    members = fed.clients(inputs, labels.repeat(copies), parts, trainer)
    head = nn.Linear(inputs.shape[1], int(labels.max()) + 1).double()
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    alone = fed.clients(features(x[:public]), y[:public], [np.arange(public)], trainer)
    begun = fed.Server(head, alone).run(100).model
    return fed.Server(begun, members), features


def plot_turns(certificate: OrbitCertificate, picture: Tensor) -> "Figure":
    """Draw the certificate of one picture under rotations: which pictures were voted on, and how
    far each of them answers, above the pictures themselves.

    Args:
        certificate: Of one input, a rotation of which is one number.
        picture: The input, (1, C, H, W).
    """
    import matplotlib.pyplot as plt

    tests = certificate.ballot.tests[0]
    (low, high) = (math.degrees(end) for end in certificate.orbit.box[0])
    edges = np.linspace(low, high, len(tests.owner) + 1)
    figure, rows = plt.subplots(
        2, 1, figsize=(6, 3.4), height_ratios=(3, 1), sharex=True, layout="constrained"
    )
    top, below = cast("list[Axes]", list(rows))
    for centre in np.unique(tests.owner[tests.owner >= 0]):
        cells = np.flatnonzero(tests.owner == centre)
        left, right = edges[cells[0]], edges[cells[-1] + 1]
        reach, won = tests.reach[centre], tests.successes[centre] / tests.trials[centre]
        colour = plt.get_cmap("Blues")(0.25 + 0.75 * (won - 0.5) * 2)
        top.bar(left, reach, right - left, align="edge", color=colour, edgecolor="white", lw=0.5)
        top.plot(math.degrees(tests.centres[centre, 0]), reach, "k.", ms=3)
    label = int(certificate.label)
    said = "abstained" if label < 0 else f"every one of these pictures is a {label}"
    top.set(ylabel="l2 distance covered", title=said, xlim=(low, high))
    angles = torch.linspace(certificate.orbit.box[0][0], certificate.orbit.box[0][1], 9)
    shown = certificate.orbit(picture.expand(9, *picture.shape[1:]), angles[:, None])
    step = (high - low) / 9
    for place, image in enumerate(shown):
        at = low + place * step
        box = (at + 0.06 * step, at + 0.94 * step, 0.0, 1.0)
        below.imshow(image[0].numpy(), extent=box, cmap="gray_r", vmin=0, vmax=1, aspect="auto")
    below.set(xlim=(low, high), ylim=(0, 1), yticks=[], xlabel="turned by (degrees)")
    return figure


def classifier(data: Data) -> "Figure":
    """Train with noise, certify the test set, print the table, draw the curves."""
    x_train, y_train, x, y = data
    curves: dict[str, tuple[Certificate, Tensor]] = {}
    print(f"{'sigma':>9}" + "".join(f"{f'r = {r:g}':>10}" for r in RADII) + f"{'abstained':>11}")
    for sigma in SIGMAS:
        smoother = GaussianSmoother(trained(sigma, x_train, y_train, epochs=25), sigma, 10)
        certificate = told(x, smoother.certify, n=1000)
        curves[f"sigma = {sigma}"] = (certificate, y)
        accuracy = runs.certified_accuracy(certificate, y.numpy(), RADII)
        abstained = int(certificate.abstained.sum())
        print(
            f"{sigma:>9}"
            + "".join(f"{floored(float(share), 3):>10}" for share in accuracy)
            + f"{abstained:>11}"
        )
    axes = runs.plot_certified_accuracy(curves, title="Digits, Gaussian smoothing")
    return cast("Figure", axes.figure)


def told(x: Tensor, certify: Callable[..., Certificate], *, n: int, size: int = 20) -> Certificate:
    """The certificates of all inputs, a few at a time so that somebody who waits is told."""
    parts = []
    with progress(len(x), shown=True, what="certifying", unit="input") as bar:
        for chunk in torch.split(torch.arange(len(x)), size):
            parts.append(certify(x[chunk], n=n, index=chunk))
            bar.update(len(chunk))
    return Certificate.cat(parts)


def rotated(data: Data, *, inputs: int = 30) -> "Figure":
    """Train on turned and noisy images, certify all rotations of some, draw one of them."""
    x_train, y_train, x, y = data
    law = train.OrbitNoise(TURNS, noise.Gaussian(0.15))
    smoother = GaussianSmoother(trained(law, x_train, y_train), 0.15, 10)
    certificate = smoother.certify_orbit(x[:inputs], TURNS)
    right = certificate.label == y[:inputs]
    print(
        f"   {int(right.sum())} of {inputs} digits are classified correctly however they are "
        f"turned by up to 20 degrees,\n   by {certificate.votes.double().mean():.0f} votes about "
        f"{certificate.centres.double().mean():.0f} pictures each."
    )
    shown = int(right.nonzero()[0]) if right.any() else 0
    return plot_turns(certificate[[shown]], x[shown : shown + 1])


def without(server: fed.Server, features: nn.Module, data: Data) -> None:
    """Train one model by all clients, print which predictions are the same without some of them."""
    *_, x, y = data
    run, seen = server.run(ROUNDS), features(x)
    before, after = (fed.accuracy(model, seen, y) for model in (server.model, run.model))
    print(f"{'':4}{'public head alone':>18}{'all clients':>13}", end="")
    shares = []
    for many in (1, 2, 5, 10):
        threat = bounds.RemovalThreat(at_most=many)
        certificate = fed.certify(run.model, seen, run.ledger, threat)
        shares.append(float((certificate.label == y).double().mean()))
        print(f"{f'without any {many}':>15}", end="")
    cells = [f"{floored(share, 3):>15}" for share in shares]
    print(f"\n{'':4}{floored(before, 3):>18}{floored(after, 3):>13}{''.join(cells)}\n")


def joint(
    server: fed.Server, features: nn.Module, law: noise.Law, data: Data, *, inputs: int = 100
) -> JointCertificate:
    """Train clients in groups on frozen features, certify against clients and noise at once."""
    x = data[2]
    vote = fed.train_groups(server, groups=len(server.clients), rounds=ROUNDS, num_classes=10)
    judge = fed.GroupJudge(vote, most=8, features=features)
    return JointSmoother(judge, law).certify(x[:inputs], n=500)


def main(out: str = "demo-out") -> None:
    """Certify a classifier, rotated pictures, a model of many clients, and clients and inputs at
    once."""
    import matplotlib

    matplotlib.use("Agg")
    began = time.perf_counter()
    torch.set_num_threads(1)  # the networks are so small that threads would wait more than work
    path = Path(out)
    path.mkdir(exist_ok=True)
    data = digits()

    def drawn(name: str, figure: "Figure") -> None:
        figure.savefig(path / f"{name}.png", dpi=150)
        print(f"   {path / name}.png ({time.perf_counter() - began:.0f} s)\n", flush=True)

    print(
        "1. A classifier of handwritten digits, trained with noise: share of 400 test images that"
        "\n   is classified correctly and certified up to an l2 radius r (n = 1000).\n"
    )
    drawn("certified-accuracy", classifier(data))
    print("2. Digits that somebody turns before handing them in.\n")
    drawn("rotated", rotated(data))
    print(
        "3. A hundred clients train one linear head, from a public one: share of 400 test images"
        "\n   that is right, and labelled the same by that training without any so many clients.\n"
    )
    law = noise.Gaussian(0.2)
    server, features = federation(law, *data[:2])
    without(server, features, data)
    print(
        "4. A hundred clients, some of whom send what they like, and a changed picture: share of"
        "\n   100 test images that is right whatever so many clients and a change of norm r do.\n"
    )
    certificate = joint(server, features, law, data)
    labels = data[3][: len(certificate.label(0))]
    print(runs.joint_table(certificate, labels, (0.0, 0.1, 0.2, 0.3, 0.4)))
    figure = runs.plot_joint(certificate, labels, title="Digits, 100 clients").figure
    drawn("clients-and-inputs", cast("Figure", figure))
    print(
        f"Three pictures in {path}/, {time.perf_counter() - began:.0f} s in all. "
        f"Each rests on assumptions: print(certificate) names them.\n"
        f"Next: docs/quickstart.md for a network of your own, docs/guide/quote.md for what you may "
        f"say,\n      `make docs` for everything in docs/_build/html."
    )


if __name__ == "__main__":
    main()
