"""Attacks along the gradient, of the model itself or of the smoothed classifier."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from rsfl._checks import number
from rsfl.attacks.attack import Attack, Sampled, State
from rsfl.attacks.region import Region, rows, size
from rsfl.smooth import Smoother

__all__ = ["PGD", "SmoothAdvDDN", "SmoothAdvPGD"]


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient ascent on the model itself, without noise: the attack of plain adversarial
    training.

    Steps have length 2 epsilon / steps unless ``step_size`` says otherwise; for the other arguments
    see :class:`Attack`.
    """

    @override
    def draw(
        self, smoother: Smoother, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return x.new_zeros((1, len(x), *smoother.law.noise_shape(x.shape[1:])))


@dataclass(frozen=True, kw_only=True)
class SmoothAdvPGD(Sampled):
    """Projected gradient ascent on the smoothed classifier.

    Steps have length 2 epsilon / steps unless ``step_size`` says otherwise; for the other arguments
    see :class:`Attack`.

    Args:
        samples: Draws of noise that stand for the law, m; they go through the model together.

    Example:
        >>> from rsfl.smooth import GaussianSmoother
        >>> smoother = GaussianSmoother(torch.nn.Linear(4, 3), 0.25, num_classes=3)
        >>> x, y = torch.full((2, 4), 0.5), torch.tensor([0, 2])
        >>> attacked = SmoothAdvPGD(epsilon=0.5, steps=10, samples=8)(smoother, x, y)
        >>> (attacked.point - x).norm(dim=1) <= 0.5
        tensor([True, True])
    """


@dataclass(frozen=True, kw_only=True)
class SmoothAdvDDN(Sampled):
    """Decoupled direction and norm on the smoothed classifier: the smallest offset that fools it,
    if it finds one.

    A step turns the offset, then sets its norm: (1 - gamma) times the last where that fooled the
    mean softmax, (1 + gamma) times, up to epsilon, where it did not. The answer is the smallest
    offset seen that fooled it, else the last one. Steps shrink along a cosine from ``step_size``,
    by default epsilon, to a hundredth of it. For the other arguments see :class:`Attack`.

    Args:
        samples: Draws of noise that stand for the law, m.
        gamma: By how much the norm changes in a step, in (0, 1).
        start: Norm that the first step is measured from, as a share of epsilon, in (0, 1].
    """

    gamma: float = 0.05
    start: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("gamma", self.gamma, 0, 1, open_low=True, open_high=True)
        number("start", self.start, 0, 1, open_low=True)

    @override
    def _budget(self) -> float:
        return self.epsilon * self.start

    @override
    def _step_size(self, step: int) -> float:
        first = self.epsilon if self.step_size is None else self.step_size
        return first * (0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2)

    @override
    def _update(self, state: State, logits: Tensor, y: Tensor, region: Region) -> None:
        fooled = logits.softmax(dim=-1).mean(dim=0).argmax(dim=-1) != y
        here = size(state.delta, region.norm)
        smaller = fooled & (here < state.smallest_size)
        state.smallest = torch.where(rows(smaller, state.delta), state.delta, state.smallest)
        state.smallest_size = torch.where(smaller, here, state.smallest_size)
        sign = 1 - 2 * fooled.to(state.radius.dtype)
        state.radius = (state.radius * (1 + self.gamma * sign)).clamp(max=self.epsilon)

    @override
    def _project(self, region: Region, delta: Tensor, radius: Tensor) -> Tensor:
        return region.boxed(region.rescaled(delta, radius))

    @override
    def _result(self, state: State) -> Tensor:
        return torch.where(
            rows(state.smallest_size.isfinite(), state.delta), state.smallest, state.delta
        )
