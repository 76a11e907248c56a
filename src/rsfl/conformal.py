r"""Prediction sets that hold under attack, from one noisy pass over each input.

A score says how badly a label fits a noisy input; calibration inputs and one draw of noise for each
give a threshold, and a set holds the labels whose score stays below it. Calibrated at a level
:math:`1 - \beta` a little above the coverage that is wanted, the sets keep that coverage when every
input is moved by up to a radius: for the law's trade-off curve T,

.. math:: P(Y \in C(X + d(X, Y))) \;\ge\; E\, T(p(X, Y)) \;\ge\; T(E\, p(X, Y)) \;\ge\; T(1 - \beta)

where p(x, y) is the probability, over the noise at x, that y is in the set: the first step is
Neyman and Pearson's, for each input; the second is Jensen's, as T is convex; the third is conformal
calibration. Scores may be anything, so this serves classes and numbers alike.

The coverage is *marginal*: a mean over inputs, labels, calibration sets and noise. It says nothing
about one input or one class; a set may be empty, or hold everything.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rsfl._checks import choice, count, number
from rsfl._draws import generator
from rsfl._models import widened
from rsfl.assumptions import EXCHANGEABLE, MARGINAL, UNSEEN_DRAW, Assumption
from rsfl.noise import Law

__all__ = ["Threshold", "calibrate", "level", "noisy"]


@dataclass(frozen=True)
class Threshold:
    """Where sets end, and what is promised of them.

    With probability at least ``coverage``, over everything that is drawn, the set of a new input
    holds its label, even if the input was moved by up to ``radius``.

    Attributes:
        value: Scores up to it are in the set; inf where there were too few calibration inputs.
        level: What calibration asks of unmoved inputs, at least ``coverage``.
        coverage: What is promised under attack.
        radius: How far inputs may be moved, in the norm and unit of the law.
        n: Calibration inputs.
        law: The noise of calibration, which must be that of use.
        dim: Number of coordinates of one input's noise, where it was given.
        rounding: What share of a score one operation of its dtype may have cost.
    """

    value: float
    level: float
    coverage: float
    radius: float
    n: int
    law: Law
    dim: int | None = None
    rounding: float = 2.0**-52

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """What the promise rests on."""
        return (MARGINAL, EXCHANGEABLE, UNSEEN_DRAW, *self.law.assumptions)

    def labels(self, scores: Tensor) -> Tensor:
        """The sets of classes (B, K), bool, from the scores (B, K) of noisy inputs.

        A score that is no number keeps its class in the set. Scores are compared as float64: in a
        narrower dtype the threshold would be another number.
        """
        return ~(scores.double() > self.value)

    def intervals(self, centre: Tensor, spread: Tensor | float = 1.0) -> Tensor:
        """The intervals (B, 2) of labels whose score :math:`|y - c| / s` is at most the threshold,
        in float64 and rounded outward, by what the scores may have been rounded too: a label whose
        own score was rounded down to the threshold is in.

        Args:
            centre: (B,) predictions c for noisy inputs. Where they are NaN, all labels are in.
            spread: (B,) their spreads s, positive; 1 for all.

        Raises:
            ValueError: A spread is not positive.
        """
        middle = centre.double()
        size = torch.as_tensor(spread, dtype=torch.float64, device=centre.device)
        if bool((size <= 0).any()):
            raise ValueError(f"spread must be positive, got {float(size.min())!r}")
        half = size * self.value
        half = half + (half.abs() + middle.abs()) * (4 * self.rounding)
        ends = torch.stack([middle - half, middle + half], dim=1)
        return torch.where(ends.isnan(), ends.new_tensor([-math.inf, math.inf]), ends)

    def coverage_at(self, radius: float) -> float:
        """What these sets promise if inputs are moved by up to another radius.

        Each radius is a statement of its own, made before looking.
        """
        return float(self.law.tradeoff(self.level, radius, dim=self.dim))

    def __repr__(self) -> str:
        norm, unit = self.law.norm, self.law.unit
        return (
            f"Threshold {self.value:.4g} of {self.n} scores: marginal coverage {self.coverage!r} "
            f"within {norm} radius {self.radius!r} in {unit} under {self.law}"
        )


def level(law: Law, coverage: float, radius: float, *, dim: int | None = None) -> float:
    """The least level of calibration at which a law's sets keep a coverage within a radius, rounded
    up: :math:`T^{-1}(1 - \\alpha)`.

    Args:
        law: The noise.
        coverage: What is wanted under attack, in [0, 1).
        radius: How far inputs may be moved, at least 0.
        dim: Number of coordinates of one input's noise; laws with a table ask for it.

    Raises:
        ValueError: No level below 1 gives that.
    """
    _of_inputs(law)
    coverage = number("coverage", coverage, 0, 1, open_high=True)
    radius = number("radius", radius, 0, np.inf, open_high=True)
    low, high = coverage, 1 - 2.0**-53
    if law.tradeoff(low, radius, dim=dim) >= coverage:
        return low
    if law.tradeoff(high, radius, dim=dim) < coverage:
        raise ValueError(
            f"radius must be one within which {law} keeps a coverage of {coverage!r}, got "
            f"{radius!r}"
        )
    while np.nextafter(low, 1) < high:
        middle = (low + high) / 2
        held = law.tradeoff(middle, radius, dim=dim) >= coverage
        low, high = (low, middle) if held else (middle, high)
    return high


def calibrate(
    scores: Tensor, law: Law, *, coverage: float = 0.9, radius: float = 0.0, dim: int | None = None
) -> Threshold:
    """The threshold from the scores of calibration inputs under one draw of noise each.

    It is the k-th smallest of n scores, :math:`k = \\lceil (n + 1)(1 - \\beta) \\rceil`, with the
    level :math:`1 - \\beta` of :func:`level`; infinite if k > n.

    Args:
        scores: (n,) of the calibration inputs' own labels, each input noisy by :func:`noisy`.
        law: Their noise.
        coverage: What is wanted under attack, in (0, 1).
        radius: How far inputs may be moved, at least 0, in the law's norm and unit.
        dim: Number of coordinates of one input's noise; laws with a table ask for it.

    Raises:
        ValueError: An argument is out of its range, or the law cannot keep the coverage.
        TypeError: scores are no tensor of numbers.

    Example:
        >>> from rsfl.noise import Gaussian
        >>> scores = torch.arange(1.0, 1000.0)
        >>> calibrate(scores, Gaussian(0.5), coverage=0.75).value
        750.0
        >>> calibrate(scores, Gaussian(0.5), coverage=0.75, radius=0.25).value
        880.0
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise TypeError(f"scores must be a floating point tensor, got {scores!r}")
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(
            f"scores must have shape (n,) with n >= 1, got {tuple(scores.shape)}: of each "
            f"calibration input the score of its own label alone"
        )
    if bool(scores.isnan().any()):
        where = scores.isnan().nonzero()[0].item()
        raise ValueError(f"scores must be numbers, got nan at index {where}")
    coverage = number("coverage", coverage, 0, 1, open_low=True, open_high=True)
    radius = number("radius", radius, 0, np.inf, open_high=True)
    dim = None if dim is None else count("dim", dim, 1)
    at, n = level(law, coverage, radius, dim=dim), len(scores)
    rank = math.ceil((n + 1) * Fraction(at))  # a product of floats might be rounded down
    value = math.inf if rank > n else float(scores.double().sort().values[rank - 1])
    rounding = float(torch.finfo(scores.dtype).eps)
    return Threshold(value, at, coverage, radius, n, law, dim, rounding)


def noisy(
    x: Tensor,
    law: Law,
    *,
    purpose: Literal["calibration", "use"],
    seed: int,
    start: int,
) -> Tensor:
    """The inputs under one draw of noise each.

    Draws are keyed by seed, purpose and the number of the input: those of calibration and of use
    share nothing. Neither seed nor start has a default: what everybody knows is no secret, and
    batches that all begin at 0 share their noise, which no coverage survives.

    Args:
        x: Inputs (B, ...).
        law: The noise.
        purpose: What for.
        seed: Seed of the draws. That of use is a secret from whoever moves inputs.
        start: Number of the first input: 0 for the first batch, and for the next one how many there
            were. No two inputs of one purpose have the same.

    Raises:
        ValueError: The law does not apply to x, or an argument is out of its range.
        TypeError: x is no tensor of floating point numbers.
    """
    choice("purpose", purpose, ("calibration", "use"))
    _of_inputs(law)
    x, seed, start = law.checked(x), count("seed", seed), count("start", start)
    shape = (1, *law.noise_shape(x.shape[1:]))
    draws = [
        law.sample(
            shape,
            generator=generator(seed, "conformal", purpose, start + i, device=x.device),
            device=x.device,
        )
        for i in range(len(x))
    ]
    return law.perturb(widened(x), torch.cat(draws))


def _of_inputs(law: Law) -> None:
    """Raise where something is no law of noise on inputs."""
    if not isinstance(law, Law):
        raise TypeError(f"law must be a noise.Law, such as noise.Gaussian(0.25), got {law!r}")
    if law.space == "parameters":
        raise ValueError(f"law must perturb inputs, got {law}, which is of a model's parameters")
