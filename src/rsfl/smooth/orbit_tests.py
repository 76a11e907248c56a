"""The sequential tests of an orbit: one for each picture that was voted on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from rsfl import bounds
from rsfl._checks import Float64, Int64
from rsfl.noise import Law
from rsfl.orbit import Mesh, Orbit

__all__ = ["OrbitTests", "decisions", "thresholds"]

_TOP = 1 - 2.0**-53


_WHOLE = ("owner", "successes", "trials", "invalid")


_REAL = ("reach", "share")


@dataclass(frozen=True, eq=False)
class OrbitTests:
    """The tests of one input: what was voted on, how far it has to hold, and the votes.

    Attributes:
        cells: How many cells the box was cut into, along each parameter.
        owner: (cells,) int64, the centre whose ball holds each cell, -1 where none does.
        centres: (N, dim) float64, parameters of the pictures that were voted on.
        reach: (N,) float64, how far the farthest picture of its cells is from each centre.
        share: (N,) float64, the share of alpha that each test was given; at most 1 in all.
        successes: (N,) int64, votes for the label.
        trials: (N,) int64, votes that were cast.
        invalid: (N,) int64, those of them with non-finite logits.
    """

    cells: tuple[int, ...]
    owner: Int64
    centres: Float64
    reach: Float64
    share: Float64
    successes: Int64
    trials: Int64
    invalid: Int64

    def __len__(self) -> int:
        return len(self.centres)

    def __post_init__(self) -> None:
        size = len(self.centres)
        for name in ("reach", "share", "successes", "trials", "invalid"):
            if len(getattr(self, name)) != size:
                raise ValueError(
                    f"{name} must hold {size} numbers, one for each centre, got "
                    f"{len(getattr(self, name))}"
                )
        if len(self.owner) != math.prod(self.cells) or (self.owner >= size).any():
            raise ValueError(
                f"owner must name one of {size} centres for each of {math.prod(self.cells)} "
                f"cells, got {self.owner!r}"
            )
        if not (self.share >= 0).all() or self.share.sum() > 1:
            raise ValueError(f"share must be at most 1 in all, got {self.share!r}")
        if not (self.reach >= 0).all():
            raise ValueError(f"reach must be at least 0, got {self.reach!r}")

    def passed(self, law: Law, *, allowance: float, alpha: float, dim: int) -> bool:
        """Whether every cell of the box has a centre whose votes decide that the label holds as far
        as the cell's pictures reach, and by ``allowance`` beyond."""
        if not len(self.owner) or (self.owner < 0).any():
            return False
        used = np.unique(self.owner)
        p0 = thresholds(law, self.reach[used] + allowance, dim)
        if np.isnan(p0).any():
            return False
        found = decisions(self.successes[used], self.trials[used], p0, self.share[used] * alpha)
        return bool((found == 1).all())

    def lower(self, alpha: float) -> Float64:
        """(N,) lower bounds on the label's probability about each centre, at the levels of the
        tests: what their votes would have decided, too; rounded down."""
        low, high = np.full(len(self), 2.0**-60), np.full(len(self), _TOP)
        while (high - low > 1e-9).any():
            middle = (low + high) / 2
            held = decisions(self.successes, self.trials, middle, self.share * alpha) == 1
            low, high = np.where(held, middle, low), np.where(held, high, middle)
        return np.where(low > 1e-9, low, 0.0)

    def confirmed(self, family: Orbit, x: Tensor) -> bool:
        """Whether no cell of this image (1, C, H, W) reaches farther from its centre than is
        said."""
        mesh = Mesh.of(family, x, self.cells)
        for place in np.unique(self.owner[self.owner >= 0]):
            centre = family(x, torch.from_numpy(self.centres[place])[None].to(x.device))
            own = torch.from_numpy(np.flatnonzero(self.owner == place)).to(x.device)
            if float(mesh.distances(centre, own).max()) > self.reach[place] * (1 + 1e-12):
                return False
        return True

    def document(self) -> dict[str, Any]:
        """The tests as JSON takes them."""
        columns = {name: getattr(self, name).tolist() for name in (*_WHOLE, *_REAL, "centres")}
        return {"cells": list(self.cells), **columns}

    @classmethod
    def of_document(cls, found: Mapping[str, Any], dim: int) -> Self:
        """The tests that :meth:`document` wrote, of an orbit with ``dim`` parameters."""
        columns: dict[str, Any] = {name: np.array(found[name], dtype=np.int64) for name in _WHOLE}
        columns |= {name: np.array(found[name], dtype=np.float64) for name in _REAL}
        centres = np.array(found["centres"], dtype=np.float64).reshape(-1, dim)
        return cls(cells=tuple(found["cells"]), centres=centres, **columns)


def thresholds(law: Law, radius: Float64, dim: int) -> Float64:
    """Probabilities from which on a law certifies these radii, at most 1e-9 above the least; NaN
    where none does."""
    radius = np.asarray(radius) * (1 + 2.0**-51)
    low, high = np.full(radius.shape, 0.5), np.full(radius.shape, _TOP)
    out = ~(np.asarray(law.radius(high, dim=dim)) >= radius)
    while (high - low > 1e-9).any():
        middle = (low + high) / 2
        enough = np.asarray(law.radius(middle, dim=dim)) >= radius
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(out, np.nan, high)


def decisions(successes: Int64, trials: Int64, p0: Float64, level: Float64) -> Int64:
    """The sequential test of each centre at its own level."""
    found = np.zeros(len(p0), dtype=np.int64)
    for alpha in np.unique(level):
        at = level == alpha
        found[at] = bounds.sequential_decision(successes[at], trials[at], p0[at], float(alpha))
    return found
