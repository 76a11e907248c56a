"""An epoch of robust training: two gradient estimators side by side, and beside plainly written
training.

The setting is that of the papers' small-budget runs: two draws of noise, two steps of the attack,
then one step of SGD. Two networks: the demo's for 8 x 8 digits, and a convolutional one of the same
kind for 32 x 32 colour images.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.apart import apart
from benchmarks.row import Row, ratio, turns
from rsfl.attacks import OnePoint, SmoothAdvPGD
from rsfl.demo import network
from rsfl.noise import Gaussian
from rsfl.train import Adversarial, Batches, CrossEntropy, Loss, fit

SIGMA, EPSILON, STEPS, SAMPLES = 0.25, 0.5, 2, 2


def colour_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 64, 10),
    )


def plainly(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """SmoothAdv as one writes it down: repeated inputs, an optimizer for the offset, backward
    through everything."""
    rows = x.repeat_interleave(SAMPLES, dim=0)
    noise = torch.randn_like(rows) * SIGMA
    delta = torch.zeros_like(x, requires_grad=True)
    optimizer = torch.optim.SGD([delta], lr=2 * EPSILON / STEPS)
    for _ in range(STEPS):
        logits = model(rows + delta.repeat_interleave(SAMPLES, dim=0) + noise)
        mean = logits.softmax(dim=1).view(len(x), SAMPLES, -1).mean(dim=1)
        loss = -functional.nll_loss(mean.clamp(min=1e-20).log(), y, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        size = delta.grad.flatten(1).norm(dim=1)
        delta.grad.div_(size.view(-1, 1, 1, 1))
        if (size == 0).any():
            delta.grad[size == 0] = torch.randn_like(delta.grad[size == 0])
        optimizer.step()
        delta.data.add_(x).clamp_(0, 1).sub_(x)
        delta.data.renorm_(p=2, dim=0, maxnorm=EPSILON)
    model.zero_grad()
    return functional.cross_entropy(
        model(rows + delta.detach().repeat_interleave(SAMPLES, dim=0) + noise),
        y.repeat_interleave(SAMPLES),
    )


def plain_epoch(make: Callable[[], nn.Module], x: Tensor, y: Tensor, size: int) -> None:
    """An epoch of the plainly written training."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for rows in torch.randperm(len(x)).split(size):
        loss = plainly(model, x[rows], y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def epoch(make: Callable[[], nn.Module], x: Tensor, y: Tensor, size: int, loss: Loss) -> None:
    """An epoch of ours."""
    model = make()
    fit(model, Batches(x, y, size), loss, torch.optim.SGD(model.parameters(), 1e-3), epochs=1)


def rows() -> Iterator[Row]:
    law = Gaussian(SIGMA)
    pgd = SmoothAdvPGD(epsilon=EPSILON, steps=STEPS, samples=SAMPLES)
    one_point = OnePoint(epsilon=EPSILON, steps=STEPS, samples=SAMPLES)
    losses: dict[str, Loss] = {
        "noise": CrossEntropy(law),
        "stochastic": Adversarial(attack=pgd, law=law, num_classes=10),
        "one-point": Adversarial(attack=one_point, law=law, num_classes=10),
        "stochastic, 10 steps": Adversarial(attack=replace(pgd, steps=10), law=law, num_classes=10),
        "one-point, 10 steps": Adversarial(
            attack=replace(one_point, steps=10), law=law, num_classes=10
        ),
    }
    for name, make, shape, size, batches, repeats in (
        ("digits", network, (1, 8, 8), 100, 20, 7),
        ("colour", colour_network, (3, 32, 32), 64, 4, 7),
    ):
        x, y = torch.rand(size * batches, *shape), torch.arange(size * batches) % 10
        ours = {kind: partial(epoch, make, x, y, size, loss) for kind, loss in losses.items()}
        with apart(partial(plain_epoch, make, x, y, size)) as plain:
            times = turns({"plainly": plain, **ours}, repeats=repeats)
        detail = ", ".join(
            f"{kind} {1e3 * median(taken) / batches:.1f} ms" for kind, taken in times.items()
        )
        for what, above, below, target in (
            ("SmoothAdv epoch, plainly written / ours", "plainly", "stochastic", 1.3),
            ("SmoothAdv epoch, stochastic / one-point", "stochastic", "one-point", None),
            (
                "the same, 10 steps of the attack",
                "stochastic, 10 steps",
                "one-point, 10 steps",
                None,
            ),
        ):
            yield Row(f"{name}: {what}", ratio(times[above], times[below]), "times", target)
        slower = ratio(times["stochastic"], times["noise"])
        yield Row(
            f"{name}: SmoothAdv epoch / noise epoch", slower, "times", detail=f"a step: {detail}"
        )
