"""What every attack is: one loop, and the few methods in which attacks differ."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self, override

from rsfl._batches import checked_batch
from rsfl._checks import count, number
from rsfl.attacks.objective import (
    attackable,
    checked_labels,
    logits_at,
    smoothed_cross_entropy,
)
from rsfl.attacks.region import Region
from rsfl.deform import Deformation
from rsfl.noise import Law
from rsfl.smooth import Smoother

__all__ = ["Attack", "Attacked", "Sampled", "State"]


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
class State:
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
        attackable(smoother)
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
        state = State(start, budget, start, torch.full_like(budget, torch.inf))
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

    def _update(  # noqa: B027
        self, state: State, logits: Tensor, y: Tensor, region: Region
    ) -> None:
        """Set the budget of the next step."""

    def _project(self, region: Region, delta: Tensor, radius: Tensor) -> Tensor:
        return region.projected(region.boxed(delta), radius)

    def _result(self, state: State) -> Tensor:
        return state.delta


@dataclass(frozen=True, kw_only=True)
class Sampled(Attack):
    """An attack on the vote under noise, for which m draws stand."""

    samples: int

    def __post_init__(self) -> None:
        super().__post_init__()
        count("samples", self.samples, 1)

    @override
    def draw(
        self, smoother: Smoother, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return smoother.noise(x, self.samples, generator=generator)
