"""Where a point may go and how it gets there: unit steps, a ball and a box, row by row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rsfl._checks import choice

__all__ = ["NORMS", "Region", "order", "rows", "size"]

NORMS = ("l1", "l2")
"""The norms whose balls can be attacked: steps and projections are written for each."""


def order(norm: str) -> float:
    """The exponent of a norm that can be attacked.

    Raises:
        ValueError: It is another one; nothing is attacked in the ball of a norm that is not meant.
    """
    return float(choice("norm of the law", norm, NORMS)[1:])


def size(delta: Tensor, norm: str) -> Tensor:
    """The norms (B,) of the rows of (B, ...)."""
    norms: Tensor = torch.linalg.vector_norm(delta.flatten(1), order(norm), dim=1)
    return norms


def rows(values: Tensor, like: Tensor) -> Tensor:
    """(B,) numbers in a shape that multiplies (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Region:
    """The offsets that an attack may take from a centre: those in a ball that do not leave a box.

    Args:
        center: (B, ...), in the box.
        norm: ``l1`` or ``l2``.
        epsilon: Radius of the ball.
        box: Range of every coordinate of center + offset, or None.
        levels: Offsets end as whole multiples of 1 / (levels - 1); None for real numbers.
    """

    center: Tensor
    norm: str
    epsilon: float
    box: tuple[float, float] | None
    levels: int | None

    def __post_init__(self) -> None:
        order(self.norm)

    def direction(self, gradient: Tensor, delta: Tensor, fallback: Tensor) -> Tensor:
        """The steepest unit step from ``delta``; ``fallback`` replaces gradients that are zero or
        not finite."""
        top = (
            gradient.flatten(1).abs().amax(dim=1)
        )  # dividing by it keeps squares from over- and underflow
        usable = (top > 0) & top.isfinite()
        gradient = torch.where(rows(usable, gradient), gradient / rows(top, gradient), fallback)
        if self.norm == "l2":
            return gradient / rows(
                size(gradient, "l2").clamp(min=torch.finfo(gradient.dtype).tiny), gradient
            )
        # In l1 all of the step belongs to the coordinate that gains most, of those that the box
        # lets move.
        if self.box is not None:
            point = self.center + delta
            stuck = ((point <= self.box[0]) & (gradient < 0)) | (
                (point >= self.box[1]) & (gradient > 0)
            )
            gradient = gradient.masked_fill(stuck, 0.0)
        flat = gradient.flatten(1)
        best = flat.abs().argmax(dim=1, keepdim=True)
        return (
            torch.zeros_like(flat).scatter(1, best, flat.gather(1, best).sign()).view_as(gradient)
        )

    def boxed(self, delta: Tensor) -> Tensor:
        """The nearest offsets that stay in the box."""
        return delta if self.box is None else (self.center + delta).clamp(*self.box) - self.center

    def projected(self, delta: Tensor, radius: Tensor) -> Tensor:
        """The nearest offsets in balls (B,); no coordinate grows or changes its sign, so the box
        stays kept."""
        if self.norm == "l2":
            return delta * rows(
                (radius / size(delta, "l2")).clamp(max=1).nan_to_num(nan=0.0), delta
            )
        ordered = delta.flatten(1).abs().sort(dim=1, descending=True).values
        excess = ordered.cumsum(dim=1) - radius[:, None]
        place = torch.arange(1, ordered.shape[1] + 1, device=delta.device)
        last = (
            (ordered * place > excess).sum(dim=1, keepdim=True).clamp(min=1)
        )  # coordinates that stay above zero
        threshold = (excess.gather(1, last - 1) / last).clamp(min=0).squeeze(1)
        return delta.sign() * (delta.abs() - rows(threshold, delta)).clamp(min=0)

    def rescaled(self, delta: Tensor, radius: Tensor) -> Tensor:
        """Multiples of the offsets that have the norms (B,); a zero offset stays zero."""
        return delta * rows(
            (radius / size(delta, self.norm)).nan_to_num(nan=0.0, posinf=0.0), delta
        )

    def settled(self, delta: Tensor) -> Tensor:
        """The points, drawn towards the centre until ball and box hold of the very numbers that are
        returned."""
        shrink = torch.zeros(len(delta), dtype=delta.dtype, device=delta.device)
        delta = delta.nan_to_num(
            nan=0.0, posinf=0.0, neginf=0.0
        )  # of steps too long for the dtype: no multiple fits
        while True:
            offset = delta * rows(1 - shrink, delta)
            if self.levels is not None:
                offset = (offset * (self.levels - 1)).round() / (self.levels - 1)
            point = self.center + offset
            if self.box is not None:
                point = point.clamp(
                    *self.box
                )  # the centre is inside: this only brings the point nearer
            # In float64 the difference is exact; a caller who measures in the points' own dtype
            # shall find no more.
            exact = size(point.double() - self.center.double(), self.norm)
            over = ~(
                exact.maximum(size(point - self.center, self.norm).double()) <= self.epsilon
            )  # NaN is over it
            if not bool(over.any()):
                return point
            more = (4 * shrink).clamp(
                min=torch.finfo(delta.dtype).eps, max=1
            )  # at 1 it is the centre itself
            shrink = torch.where(over, more, shrink)
