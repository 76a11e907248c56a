"""Aggregation rules: pure functions of the submitted models and of the weights that the server gave
them.

A rule takes ``models`` (n, d), one submitted model a row, in the order of the client ids, and
``weights`` (n,), non-negative with sum 1. It returns the new model (d,) in float64, and the weight
that each row had in it where there is one number a row to tell. Nothing is mutated, and sums run in
float64 in the order of the rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rsfl._checks import count, number

__all__ = [
    "Aggregate",
    "CoordinateMedian",
    "GeometricMedian",
    "Krum",
    "Mean",
    "Rule",
    "TrimmedMean",
]

_COLUMNS = (
    1 << 16
)  # coordinates treated at once by the rules that sort: bounds their float64 copies


class Aggregate(NamedTuple):
    """A new model and, where the rule has them, the final weights of the rows."""

    value: Tensor
    weights: tuple[float, ...] | None


class Rule(Protocol):
    """What the server calls: any function of (models, weights) will do."""

    def __call__(self, models: Tensor, weights: Tensor) -> Aggregate:
        """Aggregate ``models`` (n, d) under ``weights`` (n,)."""
        ...


def _check(models: Tensor, weights: Tensor) -> Tensor:
    """The weights in float64, once both arguments have been looked at."""
    if models.ndim != 2 or not models.is_floating_point():
        raise ValueError(
            f"models must be floating-point rows (n, d), got {models.dtype} of "
            f"{tuple(models.shape)}"
        )
    if weights.shape != models.shape[:1]:
        raise ValueError(
            f"weights must be one a row, got shape {tuple(weights.shape)} for {len(models)} rows"
        )
    weights = weights.to(models.device, torch.float64)
    if not bool((weights >= 0).all()) or abs(float(weights.sum()) - 1) > 1e-9:
        raise ValueError(f"weights must be non-negative with sum 1, got {weights.tolist()}")
    return weights


def _sum(models: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum, row after row: one float64 vector of memory, and one order whatever the
    number of threads."""
    total = torch.zeros(models.shape[1], dtype=torch.float64, device=models.device)
    for row, weight in zip(models, weights.tolist(), strict=True):
        total.add_(row.double(), alpha=weight)
    return total


def _blocks(models: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a coordinate-wise rule to blocks of columns in float64."""

    def parts() -> Iterator[Tensor]:
        for start in range(0, models.shape[1], _COLUMNS):
            yield rule(models[:, start : start + _COLUMNS].double())

    return torch.cat(list(parts()))


@dataclass(frozen=True)
class Mean:
    """The weighted average, ``sum_i p_i model_i``: federated averaging."""

    def __call__(self, models: Tensor, weights: Tensor) -> Aggregate:
        """Aggregate ``models`` (n, d) under ``weights`` (n,)."""
        weights = _check(models, weights)
        return Aggregate(_sum(models, weights), tuple(weights.tolist()))


@dataclass(frozen=True)
class GeometricMedian:
    r"""The weighted geometric median of whole models, by the smoothed Weiszfeld iteration.

    Minimises ``sum_i p_i ||z - model_i||`` with distances below ``smoothing`` counted as
    ``smoothing``: the iteration is ``z <- sum_i b_i model_i / sum_i b_i`` with ``b_i = p_i /
    max(smoothing, ||z - model_i||)``. It starts at the coordinate median and stops when a step is
    shorter than ``tolerance`` times the median distance, or after ``iterations``: neither start nor
    stop can be moved by a few rows, however far they lie. The final weights are ``b_i / sum_j
    b_j``: they depend on what the clients sent.

    Args:
        smoothing: Smallest distance that is told from 0, positive.
        iterations: Most iterations.
        tolerance: Relative length of a step at which to stop.

    References:
        Pillutla, Kakade and Harchaoui, Robust aggregation for federated learning, 2022 (RFA).
    """

    smoothing: float = 1e-8
    iterations: int = 200
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        number("smoothing", self.smoothing, 0.0, float("inf"), open_low=True, open_high=True)
        number("tolerance", self.tolerance, 0.0, 1.0)
        count("iterations", self.iterations, 1)

    def __call__(self, models: Tensor, weights: Tensor) -> Aggregate:
        """Aggregate ``models`` (n, d) under ``weights`` (n,)."""
        weights = _check(models, weights)
        current, shares = CoordinateMedian()(models, weights).value, weights
        for _ in range(self.iterations):
            distances = torch.stack([(row.double() - current).norm() for row in models])
            shares = weights / distances.clamp(min=self.smoothing)
            shares = shares / shares.sum()
            previous, current = current, _sum(models, shares)
            if float((current - previous).norm()) <= self.tolerance * float(distances.median()):
                break
        return Aggregate(current, tuple(shares.tolist()))


@dataclass(frozen=True)
class CoordinateMedian:
    """The weighted median of each coordinate, the middle of its interval where it is not unique.

    With equal weights this is the ordinary median. The value minimises ``sum_i p_i |z - model_i|``.
    """

    def __call__(self, models: Tensor, weights: Tensor) -> Aggregate:
        """Aggregate ``models`` (n, d) under ``weights`` (n,)."""
        weights = _check(models, weights)

        def median(block: Tensor) -> Tensor:
            values, order = block.sort(dim=0)
            below = weights[order].cumsum(dim=0)
            # Half the weight within rounding is half the weight: then the middle of the interval is
            # taken.
            low = (below < 0.5 - 1e-12).sum(dim=0, keepdim=True).clamp(max=len(block) - 1)
            high = (below <= 0.5 + 1e-12).sum(dim=0, keepdim=True).clamp(max=len(block) - 1)
            return ((values.gather(0, low) + values.gather(0, high)) / 2)[0]

        return Aggregate(_blocks(models, median), None)


@dataclass(frozen=True)
class TrimmedMean:
    """The weighted average of each coordinate after its ``trim`` smallest and ``trim`` largest
    values are dropped.

    Args:
        trim: How many rows to drop at either end; 2 * trim must be less than the number of rows.
    """

    trim: int

    def __post_init__(self) -> None:
        count("trim", self.trim)

    def __call__(self, models: Tensor, weights: Tensor) -> Aggregate:
        """Aggregate ``models`` (n, d) under ``weights`` (n,)."""
        weights = _check(models, weights)
        if 2 * self.trim >= len(models):
            raise ValueError(
                f"trim must leave at least one of the {len(models)} rows, got {self.trim!r}"
            )

        def trimmed(block: Tensor) -> Tensor:
            values, order = block.sort(dim=0)
            kept = slice(self.trim, len(block) - self.trim)
            shares = weights[order][kept]
            total = shares.sum(dim=0)
            # Where all the weight was trimmed away, the rows that are left count alike.
            return torch.where(
                total > 0, (shares * values[kept]).sum(dim=0) / total, values[kept].mean(dim=0)
            )

        return Aggregate(_blocks(models, trimmed), None)


@dataclass(frozen=True)
class Krum:
    """The model whose neighbours are nearest, or the average of the best ``select`` of them
    (multi-Krum).

    A row's score is the sum of its squared distances to its ``n - attackers - 2`` nearest
    neighbours. Ties go to the smaller row. The chosen rows are averaged with their weights; with
    ``select=1`` the weights do not matter.

    Args:
        attackers: Number f of attackers that the rule should stand; it needs n >= f + 3 rows (2 f +
            3 for its theorem).
        select: Number of rows to average.

    References:
        Blanchard, El Mhamdi, Guerraoui and Stainer, Machine learning with adversaries, NeurIPS
        2017.
    """

    attackers: int
    select: int = 1

    def __post_init__(self) -> None:
        count("attackers", self.attackers)
        count("select", self.select, 1)

    def __call__(self, models: Tensor, weights: Tensor) -> Aggregate:
        """Aggregate ``models`` (n, d) under ``weights`` (n,)."""
        weights = _check(models, weights)
        n = len(models)
        if n - self.attackers - 2 < 1 or self.select > n:
            raise ValueError(
                f"Krum needs at least {self.attackers + 3} rows for attackers={self.attackers} "
                f"and {self.select} for "
                f"select={self.select}, got {n}"
            )
        # Differences, not a Gram matrix: with a row at 1e6 that would lose the distances between
        # the others.
        squared = torch.zeros(n, n, dtype=torch.float64, device=models.device)
        for i in range(n):
            for j in range(i):
                squared[i, j] = squared[j, i] = (
                    (models[i].double() - models[j].double()).square().sum()
                )
        near = squared.sort(dim=1).values[:, 1 : n - self.attackers - 1]
        chosen = near.sum(dim=1).argsort(stable=True)[: self.select].sort().values
        shares = torch.zeros_like(weights)
        total = weights[chosen].sum()
        shares[chosen] = weights[chosen] / total if total > 0 else 1 / len(chosen)
        return Aggregate(_sum(models[chosen], shares[chosen]), tuple(shares.tolist()))
