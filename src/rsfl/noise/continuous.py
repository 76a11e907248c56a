"""Gaussian, uniform and Laplace noise."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from typing_extensions import override

from rsfl import _samples, bounds
from rsfl._batches import batch
from rsfl._checks import Floats, number, stored
from rsfl.assumptions import (
    IDEAL_NOISE,
    INDEPENDENT_DRAWS,
    SAME_REST,
    SHARED_MODELS,
    Assumption,
)
from rsfl.noise.law import Law

__all__ = ["Gaussian", "Laplace", "ParameterGaussian", "Uniform"]


def _drawable(name: str, scale: float) -> float:
    """A scale at which float32 draws have their digits, and are finite."""
    if not 1e-30 <= scale <= 1e30:
        raise ValueError(
            f"{name} must lie in [1e-30, 1e+30] for noise that float32 holds, got {scale!r}: scale "
            f"the inputs"
        )
    return scale


@dataclass(frozen=True)
class Gaussian(Law):
    """Independent N(0, sigma^2) noise in every coordinate: certificates in l2."""

    sigma: float
    norm = "l2"

    def __post_init__(self) -> None:
        stored(self, sigma=number("sigma", self.sigma, 0, np.inf, open_low=True, open_high=True))

    @override
    def sample(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        scale = _drawable("sigma", self.sigma)
        return _samples.normal(shape, generator=generator, device=device).mul_(scale)

    @override
    def radius(
        self, p_a: ArrayLike, p_b: ArrayLike | None = None, *, dim: int | None = None
    ) -> Floats:
        return bounds.cohen_radius(p_a, p_b, sigma=self.sigma)

    @override
    def tradeoff(self, p: ArrayLike, radius: ArrayLike, *, dim: int | None = None) -> Floats:
        return bounds.gaussian_tradeoff(p, radius, sigma=self.sigma)


@dataclass(frozen=True)
class ParameterGaussian(Gaussian):
    """Independent N(0, sigma^2) noise on the parameters of a model: l2 certificates for a change of
    the parameters.

    ``partial`` says that a part of the model carries no noise, parameters or buffers: it must be
    the same in the models that are compared.
    """

    partial: bool = False
    space = "parameters"
    unit = "parameter units"

    @override
    def checked(self, x: Tensor) -> Tensor:
        """``x``, detached, if it is a batch: no noise touches it, so it may hold any numbers."""
        return batch(x)

    @property
    def assumptions(self) -> tuple[Assumption, ...]:  # type: ignore[override]
        """What certificates under this law rest on."""
        return (SHARED_MODELS, INDEPENDENT_DRAWS, IDEAL_NOISE) + (SAME_REST,) * self.partial


@dataclass(frozen=True)
class Uniform(Law):
    """Independent noise, uniform on [-half_width, half_width], in every coordinate: certificates in
    l1."""

    half_width: float
    norm = "l1"

    def __post_init__(self) -> None:
        stored(
            self,
            half_width=number(
                "half_width", self.half_width, 0, np.inf, open_low=True, open_high=True
            ),
        )

    @override
    def sample(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        scale = _drawable("half_width", self.half_width)
        return _samples.uniform(shape, generator=generator, device=device).mul_(scale)

    @override
    def radius(
        self, p_a: ArrayLike, p_b: ArrayLike | None = None, *, dim: int | None = None
    ) -> Floats:
        return bounds.uniform_radius(p_a, p_b, half_width=self.half_width)

    @override
    def tradeoff(self, p: ArrayLike, radius: ArrayLike, *, dim: int | None = None) -> Floats:
        return bounds.uniform_tradeoff(p, radius, half_width=self.half_width)


@dataclass(frozen=True)
class Laplace(Law):
    """Independent Laplace noise of the given scale in every coordinate: certificates in l1."""

    scale: float
    norm = "l1"

    def __post_init__(self) -> None:
        stored(self, scale=number("scale", self.scale, 0, np.inf, open_low=True, open_high=True))

    @override
    def sample(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        scale = _drawable("scale", self.scale)
        return _samples.laplace(shape, generator=generator, device=device).mul_(scale)

    @override
    def radius(
        self, p_a: ArrayLike, p_b: ArrayLike | None = None, *, dim: int | None = None
    ) -> Floats:
        return bounds.laplace_radius(p_a, p_b, scale=self.scale)

    @override
    def tradeoff(self, p: ArrayLike, radius: ArrayLike, *, dim: int | None = None) -> Floats:
        return bounds.laplace_tradeoff(p, radius, scale=self.scale)
