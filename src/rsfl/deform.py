r"""Deformations: laws of noise over a warp's parameters, so that certificates hold for rotations,
shifts and similar.

A deformation moves the point that each output pixel reads: with parameters :math:`\phi`, the pixel
at :math:`p` shows the input at :math:`p + \nu_\phi(p)`, by one bilinear interpolation. Coordinates
are *half images*: the centres of the corner pixels lie at -1 and 1 on either axis, x to the right
and y down. Zero parameters are the identity.

Smoothing draws noise for the parameters, and a certificate is a distance between parameters. It
speaks of the original input, deformed once (:data:`rsfl.assumptions.ORIGINAL_INPUT`);
:func:`composition_gap` measures what that leaves out, :func:`rsfl.attacks.grid_attack` searches for
parameters that change a prediction.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from rsfl._checks import Floats, choice, count, number, stored
from rsfl.assumptions import IDEAL_NOISE, ORIGINAL_INPUT
from rsfl.noise import Gaussian, Law, Uniform

__all__ = [
    "DCT",
    "Affine",
    "Deformation",
    "PixelFlow",
    "Rotation",
    "Scaling",
    "Translation",
    "composition_gap",
]


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
    def norm(self) -> str:  # type: ignore[override]  # a class constant of other laws, here that of the base
        """The norm of the radius."""
        return self.base.norm

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
    def radius(self, p_a: ArrayLike, p_b: ArrayLike | None = None, *, dim: int = 1) -> Floats:
        return self.base.radius(p_a, p_b, dim=dim)

    @override
    def tradeoff(self, p: ArrayLike, radius: ArrayLike, *, dim: int = 1) -> Floats:
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
class _UniformDeformation(Deformation):
    half_width: float
    padding: str = field(default="zeros", kw_only=True)

    @property
    @override
    def base(self) -> Law:
        return Uniform(self.half_width)


@dataclass(frozen=True)
class _GaussianDeformation(Deformation):
    sigma: float
    padding: str = field(default="zeros", kw_only=True)

    @property
    @override
    def base(self) -> Law:
        return Gaussian(self.sigma)


@dataclass(frozen=True)
class Rotation(_UniformDeformation):
    r"""Rotation about the centre by an angle uniform on [-half_width, half_width]: certificates in
    radians.

    A positive angle turns the image counter-clockwise. The rotation is rigid in pixels, whatever
    the image's sides.

    Args:
        half_width: Largest angle, in radians, at most pi (the papers print fractions of
            :math:`\pi`).
        padding: ``zeros``, ``border`` or ``reflection``.

    Example:
        >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> Rotation(math.pi)(image, torch.tensor([[math.pi / 2]], dtype=torch.float64))
        tensor([[[[2., 4.],
                  [1., 3.]]]])
    """

    unit = "radians"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.half_width > math.pi:
            raise ValueError(
                f"half_width must be at most pi radians, half a turn, got {self.half_width!r}: "
                f"{self.half_width:g} degrees are math.radians({self.half_width:g}) = "
                f"{math.radians(self.half_width):.4g}"
            )

    @override
    def dim(self, height: int, width: int) -> int:
        return 1

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        angle = params[:, 0]
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        aspect = (height - 1) / (width - 1)
        return _affine_grid([cos, -sin * aspect, zero, sin / aspect, cos, zero], height, width)


@dataclass(frozen=True)
class Translation(_GaussianDeformation):
    """Shifts (right, down) of the points that are read, in half images, each N(0, sigma^2):
    certificates in l2.

    A half image is (W - 1) / 2 pixels to the right and (H - 1) / 2 pixels down; :meth:`pixels`
    converts.

    Args:
        sigma: Standard deviation in half images.
        padding: ``zeros``, ``border`` or ``reflection``.

    Example:
        >>> image = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]])
        >>> Translation(0.1)(image, torch.tensor([[1.0, 0.0]]))  # one half image: 1 pixel
        tensor([[[[2., 3., 0.],
                  [5., 6., 0.],
                  [8., 9., 0.]]]])
        >>> Translation(0.1).pixels(0.25, height=33, width=17)
        (2.0, 4.0)
    """

    unit = "half images"

    @override
    def dim(self, height: int, width: int) -> int:
        return 2

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        right, down = params.unbind(1)
        zero, one = torch.zeros_like(right), torch.ones_like(right)
        return _affine_grid([one, zero, right, zero, one, down], height, width)

    def pixels(self, distance: float, *, height: int, width: int) -> tuple[float, float]:
        """A distance in half images in pixels along x and along y, rounded down: the semi-axes of a
        certified ball, which is an ellipse unless the image is square."""
        exact = Fraction(number("distance", distance, 0, np.inf, open_high=True))
        height, width = count("height", height, 2), count("width", width, 2)
        return _rounded_down(exact * (width - 1) / 2), _rounded_down(exact * (height - 1) / 2)


@dataclass(frozen=True)
class Scaling(_UniformDeformation):
    """Coordinates multiplied by 1 + s about the centre, s uniform on [-half_width, half_width]:
    positive s shrinks.

    Args:
        half_width: Largest change of scale, below 1, so that the noise keeps the image upright.
        padding: ``zeros``, ``border`` or ``reflection``.
    """

    unit = "scale"

    def __post_init__(self) -> None:
        super().__post_init__()
        number("half_width", self.half_width, 0, 1, open_low=True, open_high=True)

    @override
    def dim(self, height: int, width: int) -> int:
        return 1

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        scale = 1 + params[:, 0]
        zero = torch.zeros_like(scale)
        return _affine_grid([scale, zero, zero, zero, scale, zero], height, width)


@dataclass(frozen=True)
class Affine(_GaussianDeformation):
    """The point (x, y) reads (x + a x + b y + c, y + d x + e y + f), all six N(0, sigma^2):
    certificates in l2.

    Coordinates and coefficients are half images: c and f are those of :class:`Translation`.

    Args:
        sigma: Standard deviation of each coefficient.
        padding: ``zeros``, ``border`` or ``reflection``.
    """

    unit = "affine coefficients"

    @override
    def dim(self, height: int, width: int) -> int:
        return 6

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        a, b, c, d, e, f = params.unbind(1)
        return _affine_grid([1 + a, b, c, d, 1 + e, f], height, width)


@dataclass(frozen=True)
class DCT(_GaussianDeformation):
    r"""A smooth flow of low frequencies, whose cosine coefficients are each N(0, sigma^2):
    certificates in l2.

    The pixel in row n and column m of an image (H, W) moves, along x, by

    .. math::
        \sum_{i, j < \mathrm{bases}} c_{ij}
        \cos\frac{\pi i (2 n + 1)}{2 H} \cos\frac{\pi j (2 m + 1)}{2 W}

    half images, and along y likewise with coefficients of its own. With one basis it is
    :class:`Translation`.

    Args:
        sigma: Standard deviation of each coefficient, in half images.
        bases: Frequencies along each axis, at least 1; there are 2 bases^2 parameters, those of x
            first, row by row.
        padding: ``zeros``, ``border`` or ``reflection``.
    """

    bases: int
    unit = "DCT coefficients"

    def __post_init__(self) -> None:
        super().__post_init__()
        stored(self, bases=count("bases", self.bases, 1))

    @override
    def dim(self, height: int, width: int) -> int:
        if self.bases > min(height, width):
            raise ValueError(
                f"bases must be at most the sides of the image, {height} x {width}, got "
                f"{self.bases}"
            )
        return 2 * self.bases**2

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        def cosines(size: int) -> Tensor:
            frequency = torch.arange(self.bases, dtype=params.dtype, device=params.device)
            place = torch.arange(size, dtype=params.dtype, device=params.device) + 0.5
            return torch.cos(math.pi / size * frequency[:, None] * place)

        coefficients = params.reshape(-1, 2, self.bases, self.bases)
        flow = cosines(height).T @ coefficients @ cosines(width)
        return _points(params, height, width)[..., :2] + flow.movedim(1, -1)


@dataclass(frozen=True)
class PixelFlow(_GaussianDeformation):
    """A flow of its own for every pixel, each component N(0, sigma^2) half images: certificates in
    l2.

    The parameters are the pixels' (right, down), row by row: 2 H W of them.

    Args:
        sigma: Standard deviation in half images.
        padding: ``zeros``, ``border`` or ``reflection``.
    """

    unit = "half images"

    @override
    def dim(self, height: int, width: int) -> int:
        return 2 * height * width

    @override
    def grid(self, params: Tensor, height: int, width: int) -> Tensor:
        return _points(params, height, width)[..., :2] + params.reshape(-1, height, width, 2)


def _rounded_down(exact: Fraction) -> float:
    value = float(exact)
    return value if value <= exact else float(np.nextafter(value, 0))


def _points(like: Tensor, height: int, width: int) -> Tensor:
    """(x, y, 1) of every pixel, (H, W, 3), in the dtype and on the device of a tensor."""
    y, x = (
        torch.linspace(-1, 1, size, dtype=like.dtype, device=like.device)
        for size in (height, width)
    )
    return torch.stack([*torch.meshgrid(x, y, indexing="xy"), like.new_ones(height, width)], dim=-1)


def _affine_grid(rows: list[Tensor], height: int, width: int) -> Tensor:
    """The points of affine maps, from their six coefficients (N,)."""
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    points = _points(theta, height, width).view(-1, 3) @ theta.mT
    return points.view(-1, height, width, 2)


def composition_gap(deformation: Deformation, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r"""How far deforming twice is from deforming once: :math:`\|T_b(T_a(x)) - T_{a + b}(x)\|_2` for
    each image.

    A certificate covers :math:`T_{a+b}(x)`. Someone who hands in the picture :math:`T_a(x)` has it
    resampled a second time, cut off at its borders and, for scalings and flows, deformed by other
    parameters than the sum.

    Args:
        deformation: The warp T.
        x: Images (B, C, H, W).
        a: Parameters of the first warp, (B, dim), or (dim,) for all images.
        b: Parameters of the second, (B, dim) or (dim,).

    Returns:
        (B,) l2 distances, in the units of x.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> image = torch.eye(9)[None, None]
        >>> whole, half = torch.tensor([0.25, 0.0]), torch.tensor([0.125, 0.0])  # 1 and 1/2 pixel
        >>> composition_gap(Translation(0.1, padding="border"), image, whole, whole)
        tensor([0.])
        >>> composition_gap(Translation(0.1, padding="border"), image, half, half) > 1
        tensor([True])
    """
    a, b = (params.double()[None] if params.ndim == 1 else params.double() for params in (a, b))
    difference = deformation(deformation(x, a), b) - deformation(x, a + b)
    gap: Tensor = torch.linalg.vector_norm(difference.flatten(1), dim=1)
    return gap
