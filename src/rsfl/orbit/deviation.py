"""How far pixels' values bend: the bound behind every orbit of a warp."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CHUNK", "ROUNDING", "Lattice", "Motion", "deviations", "places"]

CHUNK = 2**16
"""Points that are bounded at once: their dozen float64 columns stay in a processor's caches."""

ROUNDING = 2.0**-44
"""What rounding adds, relative to the largest number around: every value here is reached from the
image, the pixels' places and the parameters in fewer than a hundred operations of float64, each of
which errs by at most 4 units of 2^-53, and 400 x 2^-53 < 2^-44."""


class Motion(NamedTuple):
    """Where a cell's parameters make the pixels read, in pixels from the centre of the image.

    Each of ``x`` (right) and ``y`` (down) is a pair (middle, reach), tensors that broadcast to
    (cells, H, W): over the cell, the coordinate stays within the reach of the middle. ``rates``
    holds one such pair for x and one for y for each parameter: the coordinate's derivative.
    """

    x: tuple[Tensor, Tensor]
    y: tuple[Tensor, Tensor]
    rates: tuple[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], ...]


def places(x: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels' places from the centre: x (1, 1, W) and y (1, H, 1)."""
    height, width = x.shape[2:]
    right, down = (
        torch.arange(side, dtype=torch.float64, device=x.device) - (side - 1) / 2
        for side in (width, height)
    )
    return right[None, None], down[None, :, None]


class Lattice(NamedTuple):
    """The image on the plane: as far beyond its border as points may read."""

    values: Tensor  # (C, rows * columns)
    rows: int
    columns: int
    centre: tuple[float, float]  # of the image, as (x, y) in the lattice
    clamp: bool  # whether nothing changes any more beyond the lattice's rim
    size: float  # a bound on coordinates

    @classmethod
    def of(cls, x: Tensor, padding: str, reach: float) -> "Lattice":
        """One image (1, C, H, W), continued as ``padding`` says, for points within ``reach`` of its
        centre."""
        height, width = x.shape[2:]
        far = padding == "reflection"
        margins = [
            max(3, math.ceil(reach - (side - 1) / 2) + 4) if far else 3 for side in (height, width)
        ]
        places = [
            torch.arange(-margin, side + margin, device=x.device)
            for side, margin in zip((height, width), margins, strict=True)
        ]
        if padding == "reflection":
            turned = [
                (place % (2 * side - 2), side)
                for place, side in zip(places, (height, width), strict=True)
            ]
            rows, columns = (torch.minimum(at, 2 * side - 2 - at) for at, side in turned)
        else:
            rows, columns = (
                place.clamp(0, side - 1)
                for place, side in zip(places, (height, width), strict=True)
            )
        values = x[0].double()[:, rows][:, :, columns]
        if padding == "zeros":
            inside = functional.pad(
                torch.ones(height, width, dtype=torch.float64, device=x.device),
                (margins[1], margins[1], margins[0], margins[0]),
            )
            values = values * inside
        return cls(
            values.flatten(1).contiguous(),
            len(rows),
            len(columns),
            ((width - 1) / 2 + margins[1], (height - 1) / 2 + margins[0]),
            not far,
            float(len(rows) + len(columns)) + reach,
        )


class _Places(NamedTuple):
    """Rectangles that points sweep, flat: corner pixel, fractions of both ends from it."""

    corner: Tensor
    x0: Tensor
    x1: Tensor
    y0: Tensor
    y1: Tensor


def deviations(lattice: Lattice, motion: Motion, widths: Tensor) -> Tensor:
    """(cells,) l2 norms of the pixels' deviations: of each, a quarter of the cell's width times the
    most by which its slope can change, for every parameter."""
    across, along = (
        _span(*pair, at, side, lattice)
        for pair, at, side in (
            (motion.x, lattice.centre[0], lattice.columns),
            (motion.y, lattice.centre[1], lattice.rows),
        )
    )
    (left, x0, x1), (top, y0, y1) = across, along
    shape = (left + top).shape
    left, x0, x1, top, y0, y1 = (at.expand(shape) for at in (left, x0, x1, top, y0, y1))
    if bool((x1 >= 2).any() | (y1 >= 2).any()):
        raise ValueError("cells must be so small that no point moves by a pixel within one")
    corner = (top * lattice.columns + left).long()
    crossing = ((x1 >= 1) | (y1 >= 1)).nonzero(as_tuple=True)
    crossed = _Places(*(value[crossing] for value in (corner, x0, x1, y0, y1)))
    x_middle, x_half, y_middle, y_half = (x0 + x1) / 2, (x1 - x0) / 2, (y0 + y1) / 2, (y1 - y0) / 2
    total = torch.zeros(corner.shape[0], dtype=torch.float64, device=corner.device)
    for values in lattice.values:
        # Within one square of four pixels: d/dx is linear in y, d/dy is linear in x.
        first, right = values[corner], values[corner + 1]
        below, last = values[corner + lattice.columns], values[corner + lattice.columns + 1]
        across0, along0 = right - first, below - first
        twist = last - below - across0
        slopes = [across0 + y_middle * twist, along0 + x_middle * twist]
        spreads = [twist.abs() * y_half, twist.abs() * x_half]
        for slope, spread, exact in zip(
            slopes, spreads, _slopes_across(values, lattice.columns, crossed), strict=True
        ):
            slope[crossing], spread[crossing] = exact
        deviation = torch.zeros((), dtype=torch.float64, device=corner.device)
        for rates, width in zip(motion.rates, widths, strict=True):
            # (slope +- spread)(rate +- change) stays within this of its middle; the range is twice
            # as wide
            half = sum(
                slope.abs() * change + spread * (rate.abs() + change)
                for slope, spread, (rate, change) in zip(slopes, spreads, rates, strict=True)
            )
            deviation = deviation + half * (width / 2)
        total += deviation.square().sum(dim=(1, 2))
    return total.sqrt()


def _span(
    middle: Tensor, reach: Tensor, centre: float, side: int, lattice: Lattice
) -> tuple[Tensor, Tensor, Tensor]:
    """A coordinate's interval in the lattice: the pixel where it begins, and both ends from
    there."""
    at = middle + centre
    wide = reach + lattice.size * ROUNDING
    low, high = at - wide, at + wide
    if lattice.clamp:  # beyond the rim nothing changes, and on it nothing does either
        low, high = low.clamp(1.5, side - 2.5), high.clamp(1.5, side - 2.5)
    first = low.floor()
    return first, low - first, high - first


def _slopes_across(
    values: Tensor, columns: int, at: _Places
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(middle, half width) of d/dx and of d/dy over rectangles that reach into up to 2 x 2 squares
    of pixels."""
    grid = [[values[at.corner + row * columns + column] for column in range(3)] for row in range(3)]
    turned = [[grid[row][column] for row in range(3)] for column in range(3)]
    return (
        _slope_range(grid, at.x1 >= 1, at.y0, at.y1),
        _slope_range(turned, at.y1 >= 1, at.x0, at.x1),
    )


def _slope_range(
    grid: list[list[Tensor]], both: Tensor, start: Tensor, stop: Tensor
) -> tuple[Tensor, Tensor]:
    """The range of d/dx: in each of the columns that are reached it is linear in y between rows, so
    that its extremes lie at the ends and at the row in between."""
    lows, highs = [], []
    inside = stop < 1
    for column in range(2):
        d0, d1, d2 = (row[column + 1] - row[column] for row in grid)
        first = d0 + start * (d1 - d0)
        last = torch.where(inside, d0 + stop * (d1 - d0), d1 + (stop - 1) * (d2 - d1))
        between = torch.where(inside, first, d1)
        lows.append(torch.minimum(torch.minimum(first, last), between))
        highs.append(torch.maximum(torch.maximum(first, last), between))
    low = torch.where(both, torch.minimum(*lows), lows[0])
    high = torch.where(both, torch.maximum(*highs), highs[0])
    return (low + high) / 2, (high - low) / 2
