"""A search of a deformation's parameters, which needs no gradient: rays from zero, tried at growing
distances."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rsfl._checks import count
from rsfl.attacks.region import order
from rsfl.deform import Deformation

__all__ = ["Flips", "grid_attack"]


@dataclass(frozen=True)
class Flips:
    """The nearest parameters found at which a smoothed prediction changes.

    Attributes:
        label: (B,) int64, the prediction at zero parameters.
        distance: (B,) float64, norm of the nearest parameters found; inf where none were.
        parameters: (B, dim) float64, these parameters; NaN where none were found.
        other: (B,) int64, the prediction there; ``label`` where none were found.
    """

    label: Tensor
    distance: Tensor
    parameters: Tensor
    other: Tensor


def grid_attack(
    deformation: Deformation,
    x: Tensor,
    probabilities: Callable[[Tensor], Tensor],
    *,
    radius: float | Tensor,
    points: int = 100,
    directions: int = 64,
    refine: int = 20,
    generator: torch.Generator | None = None,
) -> Flips:
    """Search the parameters within a radius for the nearest ones at which the smoothed prediction
    flips.

    Rays leave zero in several directions: both of one parameter, evenly spaced ones of two, random
    ones of more. All rays are tried at growing distances. At the first with a flip, the ray on
    which the other class leads most is bisected, between this distance and the one before, for the
    point where the prediction changes. What is found is an upper bound on the distance to the
    nearest flip, and only as good as ``probabilities``: with few votes the estimate itself flips
    within a certified radius.

    Args:
        deformation: Gives the norm and the number of parameters.
        x: Images (B, C, H, W), of which only the shape is read.
        probabilities: Maps shifts of the parameters (B, dim), float64 on the device of x, one for
            each image, to the smoothed probabilities or votes (B, K) at them;
            ``DeformationSmoother.shifted`` gives such a function.
        radius: How far to search, for all images or (B,) for each; positive.
        points: Distances tried on each ray.
        directions: Rays, for two parameters or more.
        refine: Bisections of the interval in which a flip was found.
        generator: Draws the directions for three parameters or more, on the device of x.

    Returns:
        The flips. A class that only draws level with the prediction is no flip.

    Raises:
        ValueError: An argument is out of its range.
    """
    points, refine = count("points", points, 1), count("refine", refine)
    (dim,) = deformation.noise_shape(x.shape[1:])
    reach = torch.as_tensor(radius, dtype=torch.float64, device=x.device).expand(len(x))
    if not bool(((reach > 0) & reach.isfinite()).all()):
        raise ValueError(f"radius must be positive and finite, got {radius!r}")
    rays = _directions(dim, count("directions", directions, 1), generator, x.device)
    rays = rays / torch.linalg.vector_norm(rays, order(deformation.norm), dim=1, keepdim=True)

    label = probabilities(torch.zeros(len(x), dim, dtype=torch.float64, device=x.device)).argmax(
        dim=1
    )

    def rival(fraction: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
        """By how much the strongest other class leads at a fraction of the radius along a ray, and
        which it is."""
        p = probabilities((fraction * reach)[:, None] * ray)
        strongest = p.scatter(1, label[:, None], -1).max(dim=1)
        return strongest.values - p.gather(1, label[:, None])[:, 0], strongest.indices

    low, high, other = torch.zeros_like(reach), torch.full_like(reach, torch.inf), label
    ray = torch.zeros(len(x), dim, dtype=torch.float64, device=x.device)
    for step in range(1, points + 1):
        fraction = torch.full_like(reach, step / points)
        tried = [rival(fraction, direction.expand(len(x), -1)) for direction in rays]
        lead, best = torch.stack([lead for lead, _ in tried]).max(
            dim=0
        )  # the deepest flip promises the nearest
        new = (lead > 0) & high.isinf()
        found = torch.stack([found for _, found in tried]).gather(0, best[None])[0]
        low, high = torch.where(new, (step - 1) / points, low), torch.where(new, fraction, high)
        other, ray = torch.where(new, found, other), torch.where(new[:, None], rays[best], ray)
        if bool(high.isfinite().all()):
            break
    for _ in range(refine):
        middle = torch.where(high.isfinite(), (low + high) / 2, 0.0)
        lead, found = rival(middle, ray)
        low, high = torch.where(lead > 0, low, middle), torch.where(lead > 0, middle, high)
        other = torch.where(lead > 0, found, other)
    nearest = torch.where(high.isfinite(), high * reach, torch.nan)[:, None] * ray
    return Flips(label, high * reach, nearest, other)


def _directions(
    dim: int, directions: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Directions (D, dim) in which to leave zero."""
    if dim == 1:
        return torch.tensor([[1.0], [-1.0]], dtype=torch.float64, device=device)
    if dim == 2:
        angle = torch.arange(directions, dtype=torch.float64, device=device) * (
            2 * math.pi / directions
        )
        return torch.stack([angle.cos(), angle.sin()], dim=1)
    return torch.randn(directions, dim, dtype=torch.float64, device=device, generator=generator)
