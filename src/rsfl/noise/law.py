"""What every law of noise is."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rsfl._batches import checked_batch
from rsfl._checks import Floats, choice, number
from rsfl.assumptions import (
    IDEAL_NOISE,
    RAW_INPUT,
    Assumption,
)

__all__ = ["Law", "Norm"]

Norm: TypeAlias = Literal["l1", "l2", "linf", "none"]
"""How distances are measured, ``none`` by a law that has no radius: whoever reads a law knows all
the norms there are."""


class Law(ABC):
    """How inputs are perturbed, and how far a vote over the perturbations reaches.

    ``norm`` and ``unit`` say how the radius is measured, ``space`` what it is a distance of
    (``input``, ``parametric`` for deformations, ``parameters`` for models).
    """

    norm: ClassVar[Norm]
    space: ClassVar[str] = "input"
    unit: str = "input units"
    assumptions: ClassVar[tuple[Assumption, ...]] = (RAW_INPUT, IDEAL_NOISE)

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        named = cls.__dict__.get("norm")  # a property answers for the law that it asks
        if isinstance(named, str):
            choice(f"{cls.__name__}.norm", named, get_args(Norm))

    def noise_shape(self, shape: torch.Size) -> torch.Size:
        """The shape of one input's noise, from the shape of the input."""
        return shape

    @abstractmethod
    def sample(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Independent draws as a float32 tensor of the given shape."""

    def perturb(self, x: Tensor, noise: Tensor) -> Tensor:
        """The inputs under their noise, row by row; a single row of either is used for all rows of
        the other."""
        return x + noise.to(x.dtype)

    def check(self, x: Tensor) -> None:  # noqa: B027
        """Raise ValueError if the law does not apply to these inputs, which are finite."""

    def checked(self, x: Tensor) -> Tensor:
        """``x``, detached, if it is a batch (B, ...) that this law can perturb.

        Raises:
            ValueError: It holds no number, or an infinity or NaN, or :meth:`check` refuses it.
            TypeError: It is no dense tensor of floating point numbers.
        """
        x = checked_batch(x)
        self.check(x)
        return x

    @abstractmethod
    def radius(
        self, p_a: ArrayLike, p_b: ArrayLike | None = None, *, dim: int | None = None
    ) -> Floats:
        """The certified radius for bounds on the leading two probabilities, never above the exact
        one.

        ``dim`` is the number of coordinates of one input's noise; laws that pay an error per
        coordinate read it, and refuse to go without.
        """

    def tradeoff(self, p: ArrayLike, radius: ArrayLike, *, dim: int | None = None) -> Floats:
        """The least probability of an event that has probability p, when the input is moved by up
        to ``radius``; never above the exact one, convex in p.

        Raises:
            ValueError: The law has no such curve here, or an argument is out of its range.
        """
        raise ValueError(f"law must have a trade-off curve, got {self}")

    def probability(self, radius: float, *, dim: int | None = None) -> float:
        """The least p_a from which on this law certifies ``radius``, rounded up.

        Raises:
            ValueError: No probability below 1 certifies such a radius.
        """
        radius = number("radius", radius, 0, np.inf, open_high=True)
        low, high = 0.5, 1 - 2.0**-53
        if (largest := self.radius(high, dim=dim)) < radius:
            raise ValueError(
                f"radius must be one that {self} can certify, at most {largest!r}, got {radius!r}"
            )
        while np.nextafter(low, 1) < high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.radius(middle, dim=dim) >= radius else (middle, high)
        return high
