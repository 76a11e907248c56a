"""Smoothers that are called by their noise: a line each, of a :class:`Smoother` under a law."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rsfl._models import voting
from rsfl.deform import Deformation
from rsfl.noise import Gaussian, Laplace, Uniform
from rsfl.smooth.input import Smoother
from rsfl.smooth.module import Preprocessing
from rsfl.smooth.votes import BLOCK, tally

__all__ = ["DeformationSmoother", "GaussianSmoother", "LaplaceSmoother", "UniformSmoother"]


class GaussianSmoother(Smoother):
    """Smoothing with Gaussian noise: certificates in l2.

    Args:
        model: Maps a batch of inputs to logits.
        sigma: Standard deviation of the noise, in units of the inputs given to the smoother.
        num_classes: Width of the logits.
        preprocessing: (mean, std) that the model expects: see :class:`Smoother`.
        bounds: (low, high) of every coordinate; radii are then in pixels.
        spot_check: See :class:`Smoother`.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        sigma: float,
        num_classes: int,
        *,
        preprocessing: Preprocessing | None = None,
        bounds: tuple[float, float] | None = None,
        spot_check: bool = True,
    ) -> None:
        super().__init__(
            model,
            Gaussian(sigma),
            num_classes,
            preprocessing=preprocessing,
            bounds=bounds,
            spot_check=spot_check,
        )


class UniformSmoother(Smoother):
    """Smoothing with noise uniform on a cube: certificates in l1.

    Args:
        model: Maps a batch of inputs to logits.
        half_width: Half the side of the cube, in units of the inputs given to the smoother.
        num_classes: Width of the logits.
        preprocessing: (mean, std) that the model expects: see :class:`Smoother`.
        bounds: (low, high) of every coordinate; radii are then in pixels.
        spot_check: See :class:`Smoother`.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        half_width: float,
        num_classes: int,
        *,
        preprocessing: Preprocessing | None = None,
        bounds: tuple[float, float] | None = None,
        spot_check: bool = True,
    ) -> None:
        super().__init__(
            model,
            Uniform(half_width),
            num_classes,
            preprocessing=preprocessing,
            bounds=bounds,
            spot_check=spot_check,
        )


class LaplaceSmoother(Smoother):
    """Smoothing with Laplace noise: certificates in l1.

    Args:
        model: Maps a batch of inputs to logits.
        scale: Scale of the noise, in units of the inputs given to the smoother.
        num_classes: Width of the logits.
        preprocessing: (mean, std) that the model expects: see :class:`Smoother`.
        bounds: (low, high) of every coordinate; radii are then in pixels.
        spot_check: See :class:`Smoother`.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        scale: float,
        num_classes: int,
        *,
        preprocessing: Preprocessing | None = None,
        bounds: tuple[float, float] | None = None,
        spot_check: bool = True,
    ) -> None:
        super().__init__(
            model,
            Laplace(scale),
            num_classes,
            preprocessing=preprocessing,
            bounds=bounds,
            spot_check=spot_check,
        )


class DeformationSmoother(Smoother):
    """Smoothing with deformed copies: certificates in the parameters of the deformation.

    Args:
        model: Maps a batch of images (B, C, H, W) to logits.
        deformation: The warp and the law of its parameters, such as ``deform.Rotation(0.3)``.
        num_classes: Width of the logits.
        spot_check: See :class:`Smoother`.
    """

    def __init__(
        self,
        model: nn.Module,
        deformation: Deformation,
        num_classes: int,
        *,
        spot_check: bool = True,
    ) -> None:
        if not isinstance(deformation, Deformation):
            raise TypeError(f"deformation must be a deform.Deformation, got {deformation!r}")
        super().__init__(model, deformation, num_classes, spot_check=spot_check)

    def shifted(self, x: Tensor, noise: Tensor) -> Callable[[Tensor], Tensor]:
        """The votes (B, K) of x under noise (m, B, dim), as a function of shifts (B, dim) of the
        parameters.

        This is what :func:`rsfl.attacks.grid_attack` searches: the noise stays the same for all
        shifts.
        """
        x = self.checked(x)
        rows = torch.arange(len(x), device=x.device)

        def votes(shift: Tensor) -> Tensor:
            counts = torch.zeros((len(x), self.num_classes + 1), dtype=torch.int64, device=x.device)
            with voting(self.model):
                for part in torch.split(noise, max(1, BLOCK // len(x))):
                    tally(
                        self.logits(x, part + shift).flatten(0, 1), rows.repeat(len(part)), counts
                    )
            return counts[:, : self.num_classes]

        return votes
