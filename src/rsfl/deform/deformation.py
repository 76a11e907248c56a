"""What every deformation is: a law over the parameters of a warp, applied by one interpolation."""

from abc import abstractmethod
from dataclasses import Field, dataclass, field, fields
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from rsfl._checks import Floats, choice, stored
from rsfl.assumptions import IDEAL_NOISE, ORIGINAL_INPUT
from rsfl.noise import Gaussian, Law, Uniform

__all__ = ["Deformation", "GaussianDeformation", "UniformDeformation", "points"]


class Deformation(Law):
    """A law over the parameters of a warp: the noise, the norm and the radius are those of its
    ``base`` law.

    Coordinates are computed in float64 and the result has the dtype of the input: in float32,
    rounded coordinates alone would change an image of 224 pixels by 3e-5.

    Outside of the image the ``padding`` is read: ``zeros``, its nearest pixel (``border``) or its
    ``reflection``.
    """

    space = "parametric"
    assumptions = (ORIGINAL_INPUT, IDEAL_NOISE)
    padding: str

    def __post_init__(self) -> None:
        choice("padding", self.padding, ("zeros", "border", "reflection"))
        stored(self, **vars(self.base))  # which has checked its number

    @property
    @abstractmethod
    def base(self) -> Law:
        """The law of each parameter."""

    @property
    def norm(self) -> str:  # type: ignore[override]  # that of the base
        """The norm of the radius."""
        return self.base.norm

    @property
    def warp(self) -> str:
        """What the parameters are those of: the deformation without its noise. A distance under one
        warp is none under another, though both be called half images."""
        own: tuple[Field[Any], ...] = fields(self)  # type: ignore[arg-type]  # all are dataclasses
        settings = [f"{one.name}={getattr(self, one.name)!r}" for one in own]
        scale = set(vars(self.base))
        kept = [text for one, text in zip(own, settings, strict=True) if one.name not in scale]
        return f"{type(self).__name__}({', '.join(kept)})"

    @abstractmethod
    def dim(self, height: int, width: int) -> int:
        """The number of parameters for images of this size."""

    @abstractmethod
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        """The points (N, height, width, 2) as (x, y) that the pixels read under parameters (N,
        dim)."""

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        """The deformed images, differentiable in images and parameters.

        Args:
            x: Images (N, C, H, W), or one image (1, C, H, W) for all parameters.
            params: Parameters (N, dim), or (1, dim) for all images.

        Returns:
            Images (N, C, H, W) in the dtype of x.

        Raises:
            ValueError: The shapes do not fit.
            TypeError: x is not of a floating point dtype.
        """
        self.check(x)
        height, width = x.shape[2:]
        dim = self.dim(height, width)
        if (
            params.ndim != 2
            or params.shape[1] != dim
            or (len(x) != len(params) and 1 not in (len(x), len(params)))
        ):
            raise ValueError(
                f"params must have shape ({'N' if len(x) == 1 else len(x)}, {dim}) for {self} "
                f"and x of shape "
                f"{tuple(x.shape)}, got {tuple(params.shape)}"
            )
        rows = max(len(x), len(params))
        grid = self.grid(params.double(), height, width).expand(rows, -1, -1, -1)
        images = x.double().expand(rows, -1, -1, -1)
        warped = functional.grid_sample(
            images, grid, mode="bilinear", padding_mode=self.padding, align_corners=True
        )
        return warped.to(x.dtype)

    @override
    def noise_shape(self, shape: torch.Size) -> torch.Size:
        """(dim,) for images of shape (C, H, W)."""
        _, height, width = _image(shape)
        return torch.Size([self.dim(height, width)])

    @override
    def sample(
        self,
        shape: tuple[int, ...],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        return self.base.sample(shape, generator=generator, device=device)

    @override
    def perturb(self, x: Tensor, noise: Tensor) -> Tensor:
        return self(x, noise)

    @override
    def check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(f"x must have a floating point dtype, got {x.dtype}")
        _image(x.shape[1:])

    @override
    def radius(
        self, p_a: ArrayLike, p_b: ArrayLike | None = None, *, dim: int | None = None
    ) -> Floats:
        return self.base.radius(p_a, p_b, dim=dim)

    @override
    def tradeoff(self, p: ArrayLike, radius: ArrayLike, *, dim: int | None = None) -> Floats:
        return self.base.tradeoff(p, radius, dim=dim)


def _image(shape: torch.Size) -> torch.Size:
    """The shape of one image, if it is one that can be deformed."""
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise ValueError(
            "x must be a batch of images (B, C, H, W) with H and W at least 2, got inputs of shape "
            f"{tuple(shape)}; add what is missing with x[None] for the batch or x[:, None] for "
            f"the channel"
        )
    return shape


@dataclass(frozen=True)
class UniformDeformation(Deformation):
    """A deformation whose parameters are each uniform on [-half_width, half_width]."""

    half_width: float
    padding: str = field(default="zeros", kw_only=True)

    @property
    @override
    def base(self) -> Law:
        return Uniform(self.half_width)


@dataclass(frozen=True)
class GaussianDeformation(Deformation):
    """A deformation whose parameters are each N(0, sigma^2)."""

    sigma: float
    padding: str = field(default="zeros", kw_only=True)

    @property
    @override
    def base(self) -> Law:
        return Gaussian(self.sigma)


def points(like: Tensor, height: int, width: int) -> Tensor:
    """(x, y, 1) of every pixel, (H, W, 3), in the dtype and on the device of a tensor."""
    y, x = (
        torch.linspace(-1, 1, size, dtype=like.dtype, device=like.device)
        for size in (height, width)
    )
    return torch.stack([*torch.meshgrid(x, y, indexing="xy"), like.new_ones(height, width)], dim=-1)
