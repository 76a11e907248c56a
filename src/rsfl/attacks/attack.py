"""The attacks: one loop, and the few lines in which they differ."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self, override

from rsfl._batches import checked_batch
from rsfl._checks import choice, count, number
from rsfl.attacks.objective import (
    checked_labels,
    logits_at,
    one_point_gradient,
    smoothed_cross_entropy,
)
from rsfl.attacks.region import Region, rows, size
from rsfl.deform import Deformation
from rsfl.noise import Gaussian, Laplace, Law
from rsfl.smooth import Smoother

__all__ = ["PGD", "Attack", "Attacked", "OnePoint", "SmoothAdvDDN", "SmoothAdvPGD"]


@dataclass(frozen=True, eq=False)
class Attacked:
    """Where an attack arrived.

    Attributes:
        point: The attacked inputs (B, ...) or, for deformations, the offsets (B, dim) of the
            parameters.
        noise: The draws (m, B, ...) that the attack looked at, in every step the same; training
            reuses them.
    """

    point: Tensor
    noise: Tensor


@dataclass
class _State:
    """An attack under way: offset and budget of the next step, and the smallest offset that fooled
    the vote so far."""

    delta: Tensor
    radius: Tensor
    smallest: Tensor
    smallest_size: Tensor


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack's configuration, called as ``attack(smoother, x, y)``; the loop is the same for
    all.

    Args:
        epsilon: Budget, at least 0, in the norm and unit of the smoother's law.
        steps: Number of steps, at least 1.
        step_size: Length of a step; None for the attack's own.
        box: Range that every coordinate of an input keeps to, or None; offsets of deformations have
            no box.
        levels: Offsets of inputs become whole multiples of 1 / (levels - 1): 256 keeps 8-bit images
            8-bit, which ``RoundedGaussian`` asks of the inputs it certifies. None for real numbers.
    """

    epsilon: float
    steps: int
    step_size: float | None = None
    box: tuple[float, float] | None = (0.0, 1.0)
    levels: int | None = None

    def __post_init__(self) -> None:
        number("epsilon", self.epsilon, 0, np.inf, open_high=True)
        count("steps", self.steps, 1)
        if self.step_size is not None:
            number("step_size", self.step_size, 0, np.inf, open_low=True, open_high=True)
        if self.box is not None and not -math.inf < self.box[0] < self.box[1] < math.inf:
            raise ValueError(f"box must be (low, high) with low < high, or None, got {self.box!r}")
        if self.levels is not None:
            count("levels", self.levels, 2)

    def __call__(
        self,
        smoother: Smoother,
        x: Tensor,
        y: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        fallback: Tensor | None = None,
    ) -> Attacked:
        """Attack each input; the model's mode, its parameters and their gradients are left as they
        are.

        Args:
            smoother: What is attacked.
            x: Inputs (B, ...) in the box.
            y: True labels (B,), int64; the attack tries to change the prediction away from them.
            noise: Draws (m, B, ...) to look at; None draws them.
            generator: Draws the noise and the fallback.
            fallback: Directions (B, ...) of steps whose gradient is exactly zero; None draws them.

        Returns:
            The points, within ``epsilon`` of x and in the box in the floating point numbers
            themselves, and the noise.

        Raises:
            ValueError: x is outside the box or not finite, a label is not one of the smoother's
                classes.
            TypeError: smoother is not a Smoother, x is not of a floating point dtype, y not of an
                integer one.
        """
        if not isinstance(smoother, Smoother):
            raise TypeError(f"smoother must be a smooth.Smoother, got {smoother!r}")
        x = checked_batch(x)
        checked_labels(y, len(x), smoother.num_classes)
        region = self._region(smoother.law, x)
        center = region.center
        noise = self.draw(smoother, x, generator) if noise is None else noise.detach()
        if fallback is None:
            fallback = torch.randn(
                center.shape, generator=generator, device=center.device, dtype=center.dtype
            )
        elif fallback.shape != center.shape:
            raise ValueError(
                f"fallback must have shape {tuple(center.shape)}, got {tuple(fallback.shape)}"
            )
        start = torch.zeros_like(center)
        budget = torch.full((len(x),), self._budget(), dtype=center.dtype, device=center.device)
        state = _State(start, budget, start, torch.full_like(budget, torch.inf))
        for step in range(self.steps):
            gradient, logits = self._gradient(smoother, x, y, center + state.delta, noise)
            self._update(state, logits, y, region)
            moved = state.delta + self._step_size(step) * region.direction(
                gradient, state.delta, fallback
            )
            state.delta = self._project(region, moved, state.radius)
        return Attacked(region.settled(self._result(state)), noise)

    def scaled(self, factor: float) -> Self:
        """The same attack with its budget times a factor in [0, 1]."""
        return replace(self, epsilon=self.epsilon * number("factor", factor, 0, 1))

    @abstractmethod
    def draw(
        self, smoother: Smoother, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The noise (m, B, ...) of one attack."""

    def _region(self, law: Law, x: Tensor) -> Region:
        if isinstance(law, Deformation):
            offsets = x.new_zeros((len(x), *law.noise_shape(x.shape[1:])))
            return Region(offsets, law.norm, self.epsilon, box=None, levels=None)
        if self.box is not None:
            low, high = self.box
            bad = (x < low) | (x > high)
            if bool(bad.any()):
                where = tuple(bad.nonzero()[0].tolist())
                raise ValueError(
                    f"x must lie in the box [{low:g}, {high:g}], got {x[where].item()!r} at "
                    f"index {where}"
                )
        return Region(x, law.norm, self.epsilon, self.box, self.levels)

    # What attacks differ in; these are plain projected ascent on the smoothed cross-entropy.

    def _gradient(
        self, smoother: Smoother, x: Tensor, y: Tensor, point: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The direction in which the objective grows (B, ...), and the logits (m, B, K)."""
        with torch.enable_grad():
            point.requires_grad_()
            logits = logits_at(smoother, x, point, noise)
            objective = smoothed_cross_entropy(logits, y).sum()
            (gradient,) = torch.autograd.grad(
                objective, point
            )  # of the point alone, of no parameter
        return gradient, logits.detach()

    def _budget(self) -> float:
        """What the first step may spend."""
        return self.epsilon

    def _step_size(self, step: int) -> float:
        return 2 * self.epsilon / self.steps if self.step_size is None else self.step_size

    def _update(self, state: _State, logits: Tensor, y: Tensor, region: Region) -> None:  # noqa: B027
        """Set the budget of the next step."""

    def _project(self, region: Region, delta: Tensor, radius: Tensor) -> Tensor:
        return region.projected(region.boxed(delta), radius)

    def _result(self, state: _State) -> Tensor:
        return state.delta


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
class _Sampled(Attack):
    samples: int

    def __post_init__(self) -> None:
        super().__post_init__()
        count("samples", self.samples, 1)

    @override
    def draw(
        self, smoother: Smoother, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return smoother.noise(x, self.samples, generator=generator)


@dataclass(frozen=True, kw_only=True)
class SmoothAdvPGD(_Sampled):
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
class SmoothAdvDDN(_Sampled):
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
    def _update(self, state: _State, logits: Tensor, y: Tensor, region: Region) -> None:
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
    def _result(self, state: _State) -> Tensor:
        return torch.where(
            rows(state.smallest_size.isfinite(), state.delta), state.smallest, state.delta
        )


@dataclass(frozen=True, kw_only=True)
class OnePoint(_Sampled):
    """Projected descent of the vote by Stein's estimator: forward passes only, no graph, hard votes
    welcome.

    The gradient of :math:`G_y` comes from :func:`one_point_gradient`, for laws whose density has a
    gradient: Gaussian and Laplace. Steps have length 2 epsilon / steps unless ``step_size`` says
    otherwise; for the other arguments see :class:`Attack`.

    Args:
        samples: Draws of noise, m.
        estimator: ``antithetic`` draws pairs of noise and its negative (an even number), which
            never has more variance than ``plain``; ``baseline`` subtracts the other draws' mean (at
            least 2 samples), which has less still where the label wins most votes and m is not
            small.
        votes: ``soft`` for the softmax of the label, ``hard`` for whether the label wins.
    """

    estimator: str = "antithetic"
    votes: str = "soft"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("votes", self.votes, ("soft", "hard"))
        if choice("estimator", self.estimator, ("plain", "baseline", "antithetic")) == "baseline":
            count("samples", self.samples, 2)
        elif self.estimator == "antithetic" and self.samples % 2:
            raise ValueError(f"samples must be even for antithetic pairs, got {self.samples!r}")

    @override
    def draw(
        self, smoother: Smoother, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        if self.estimator != "antithetic":
            return super().draw(smoother, x, generator)
        half = smoother.noise(x, self.samples // 2, generator=generator)
        return torch.cat([half, -half])

    @override
    @torch.no_grad()
    def _gradient(
        self, smoother: Smoother, x: Tensor, y: Tensor, point: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        score = _score(smoother.law, noise)
        logits = logits_at(smoother, x, point, noise)
        if self.votes == "soft":
            dtype = torch.promote_types(logits.dtype, torch.float32)
            values = (
                logits.softmax(dim=-1, dtype=dtype)
                .gather(-1, y.expand(len(logits), -1)[..., None])
                .squeeze(-1)
            )
        else:
            values = (logits.argmax(dim=-1) == y).to(score.dtype)
        gradient = one_point_gradient(score, values, baseline=self.estimator == "baseline")
        return -gradient.to(point.dtype), logits


def _score(law: Law, noise: Tensor) -> Tensor:
    """Minus the gradient of the noise's log-density."""
    base = law.base if isinstance(law, Deformation) else law
    if isinstance(base, Gaussian):
        return noise / base.sigma**2
    if isinstance(base, Laplace):
        return noise.sign() / base.scale
    raise ValueError(
        f"law must be Gaussian or Laplace noise for OnePoint, whose density has a gradient, got "
        f"{law}"
    )
