"""An attack as its caller takes it: gradients are at hand, nothing of the caller's is shared, and
the result is measured again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rsfl._batches import checked_batch
from rsfl._models import evaluating
from rsfl.attacks.attack import Attack, Attacked
from rsfl.attacks.objective import checked_labels
from rsfl.attacks.region import order, size
from rsfl.deform import Deformation
from rsfl.smooth import Smoother

__all__ = ["attacked"]


def attacked(
    attack: Attack,
    smoother: Smoother,
    x: Tensor,
    y: Tensor,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    *,
    fallback: Tensor | None = None,
) -> tuple[Attacked, Tensor]:
    """Where the attack arrived, and how far that is (B,), float64.

    It runs in evaluation mode and may take gradients of anything: those that it leaves in the
    parameters are dropped. It gets copies of x and y, which it may write into.

    Raises:
        ValueError: What it returned is of another shape, not finite, further away than its epsilon,
            or outside its box; it wrote into the model; x, y or the law's norm are none that can be
            attacked.
        TypeError: x or y is of another dtype.
    """
    x, y = checked_batch(x), checked_labels(y, len(x), smoother.num_classes)
    epsilon, box = attack.epsilon, attack.box
    order(smoother.law.norm)
    before = _versions(smoother.model)
    with _attackable(smoother.model):
        found = attack(smoother, x.clone(), y.clone(), noise, generator, fallback=fallback)
    if _versions(smoother.model) != before:
        raise ValueError(f"attack {type(attack).__name__} must leave the model's weights alone")
    point = found.point.detach()
    deformation = isinstance(smoother.law, Deformation)
    center = x.new_zeros((len(x), *smoother.law.noise_shape(x.shape[1:]))) if deformation else x
    return Attacked(point, found.noise.detach()), _measured(
        attack, point, center, smoother.law.norm, epsilon, None if deformation else box
    )


def _measured(
    attack: Attack,
    point: Tensor,
    center: Tensor,
    norm: str,
    epsilon: float,
    box: tuple[float, float] | None,
) -> Tensor:
    """How far the points (B,) are, if they are where the attack may go."""
    name = type(attack).__name__
    if point.shape != center.shape:
        raise ValueError(
            f"attack {name} must return points of shape {tuple(center.shape)}, got "
            f"{tuple(point.shape)}"
        )
    distance = size(point.double() - center.double(), norm)
    over = ~(distance <= epsilon)  # NaN is over it
    if bool(over.any()):
        raise ValueError(
            f"attack {name} must stay within epsilon={epsilon!r} of x in {norm}, got distance "
            f"{distance[over][0].item()!r} at index {over.nonzero()[0].item()}"
        )
    if box is not None:
        out = (point < box[0]) | (point > box[1])
        if bool(out.any()):
            where = tuple(out.nonzero()[0].tolist())
            raise ValueError(
                f"attack {name} must stay in the box [{box[0]:g}, {box[1]:g}], got "
                f"{point[where].item()!r} at index {where}"
            )
    return distance


def _versions(model: nn.Module) -> list[int]:
    """How often each parameter and buffer was written into."""
    return [tensor._version for tensor in (*model.parameters(), *model.buffers())]


@contextmanager
def _attackable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients; those of the parameters are afterwards what they were."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in kept:
            parameter.grad = None  # what the attack adds goes nowhere
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient
