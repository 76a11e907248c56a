"""What a certificate of a deformation leaves out: pictures that are deformed twice."""

import torch
from torch import Tensor

from rsfl.deform.deformation import Deformation

__all__ = ["composition_gap"]


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
        >>> from rsfl.deform import Translation
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
