"""Certified accuracy at one radius, from images to the figure: the sequential test beside the plain
certification loop.

The images are scikit-learn's digits, enlarged to 28 x 28; the network is trained on them with the
noise it is certified with. The plain loop spends its votes on every image alike, so its time for
one holds for all. How much the sequential test gains depends on how the votes fall; that is why the
network is a trained one.
"""

import copy
from collections.abc import Iterator
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.apart import apart
from benchmarks.networks import small_cnn
from benchmarks.row import Row, ratio, turns
from benchmarks.votes import bfloat16_is_fast, plain_votes
from rsfl import bounds, demo
from rsfl.smooth import Certificate, GaussianSmoother

SIGMA, ALPHA, N0, N = 0.25, 0.001, 100, 100_000
TEST, EPOCHS = 300, 15


def digits() -> tuple[Tensor, Tensor]:
    x, y, test_x, test_y = demo.digits()
    small = torch.cat([test_x, x])
    return functional.interpolate(
        small, size=(28, 28), mode="bilinear", align_corners=False
    ), torch.cat([test_y, y])


def trained(x: Tensor, y: Tensor) -> nn.Module:
    """A network trained with the noise of the certificate."""
    model = small_cnn()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(64):
            noisy = x[rows] + SIGMA * torch.randn_like(x[rows])
            loss = functional.cross_entropy(model(noisy), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def plain_certify(model: nn.Module, x: Tensor) -> tuple[int, float]:
    """Select with n0 votes, bound with n: the label and its radius, -1 and 0 to abstain."""
    label = int(plain_votes(model, x, N0).argmax())
    p = float(bounds.clopper_pearson_lower(int(plain_votes(model, x, N)[label]), N, ALPHA))
    return (label, float(bounds.cohen_radius(p, sigma=SIGMA))) if p > 0.5 else (-1, 0.0)


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    x, y = digits()
    model = trained(x[TEST:], y[TEST:])
    x, y = x[:TEST], y[:TEST]
    kinds = {"float32": (model, 80.0)}
    if bfloat16_is_fast():
        cast = copy.deepcopy(model).bfloat16().to(memory_format=torch.channels_last)
        kinds["bfloat16"] = (cast, 120.0)
    found: dict[str, Certificate] = {}

    def decide(kind: str) -> None:
        found[kind] = GaussianSmoother(kinds[kind][0], SIGMA, 10).certify_at(
            x, SIGMA, n0=N0, alpha=ALPHA, n_max=N
        )

    with apart(partial(plain_certify, model, x[0])) as plain:
        times = turns(
            {"plain": plain, **{kind: partial(decide, kind) for kind in kinds}}, repeats=3
        )
    for kind, (_, target) in kinds.items():
        gain = TEST * ratio(times["plain"], times[kind])
        share = (found[kind].label == y).double().mean().item()
        votes = (found[kind].n + found[kind].n0).double().mean().item()
        took = 1e3 * median(times[kind]) / TEST
        detail = f"{took:.1f} ms an image, {votes:.0f} votes; certified accuracy {share:.3f}"
        yield Row(f"certified accuracy at r = sigma, {kind}: times "
                  f"the plain loop", gain, "times", target,
                  detail=detail)  # fmt: skip
