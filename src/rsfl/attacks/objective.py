"""What attacks look at: the smoothed classifier's loss at a point, and its gradient from values
alone."""

import math

import torch
from torch import Tensor

from rsfl.deform import Deformation
from rsfl.smooth import Smoother

__all__ = [
    "attackable",
    "checked_labels",
    "logits_at",
    "one_point_gradient",
    "smoothed_cross_entropy",
]


def attackable(smoother: object) -> None:
    """Raise TypeError where something is no smoother under noise on whole inputs."""
    if not isinstance(smoother, Smoother):
        raise TypeError(
            f"smoother must be a smooth.Smoother, such as smooth.GaussianSmoother(model, "
            f"sigma=0.5, num_classes=10), got {type(smoother).__name__}"
        )
    if smoother.touched:
        raise TypeError(
            f"smoother must be under noise on whole inputs, got noise on {smoother.touched}: "
            f"smoother.logits(batch, noise) is what an attack of your own differentiates"
        )


def checked_labels(y: Tensor, rows: int, num_classes: int) -> Tensor:
    """``y`` if it holds one class for each input.

    Raises:
        ValueError: The shape is wrong, or a label is not in 0 ... num_classes - 1.
        TypeError: y is not an int64 tensor.
    """
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        raise TypeError(
            f"y must be an int64 tensor, got "
            f"{y.dtype if isinstance(y, Tensor) else type(y).__name__}"
        )
    if y.shape != (rows,):
        raise ValueError(
            f"y must hold one label for each of {rows} inputs, got shape {tuple(y.shape)}"
        )
    bad = (y < 0) | (y >= num_classes)
    if bool(bad.any()):
        raise ValueError(
            f"y must lie in 0 ... {num_classes - 1}, got {y[bad][0].item()} at index "
            f"{bad.nonzero()[0].item()}"
        )
    return y


def logits_at(smoother: Smoother, x: Tensor, point: Tensor, noise: Tensor) -> Tensor:
    """The model's logits (m, B, K) under noise at a point: an input (B, ...), or offsets of x's
    deformation (B, dim).

    Args:
        smoother: The model and its law.
        x: The unattacked inputs (B, ...).
        point: Where to look, as in :class:`Attacked`.
        noise: Draws (m, B, ...).
    """
    if isinstance(smoother.law, Deformation):
        return smoother.logits(x, noise + point)
    return smoother.logits(point, noise)


def smoothed_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    r"""The attack's objective, :math:`-\log \frac1m \sum_i \mathrm{softmax}(\mathrm{logits}_i)_y`,
    for each input.

    The logarithm of the mean, not the mean of the logarithm: the latter would look for an input
    that misleads the model in spite of the noise, this one for an input at which the vote is low.

    Args:
        logits: (m, B, K).
        y: Labels (B,) int64.

    Returns:
        (B,), in float32 at least.

    Example:
        >>> logits = torch.tensor([-1e4, 0.0]).expand(1, 1, 2)  # p = (0, 1)
        >>> both = torch.cat([logits, logits.flip(2)])  # each copy is sure of one class: 1/2
        >>> smoothed_cross_entropy(both, torch.tensor([0]))
        tensor([0.6931])
    """
    rows = y.expand(len(logits), -1)[..., None]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_p = logits.log_softmax(dim=-1, dtype=dtype).gather(-1, rows).squeeze(-1)
    return math.log(len(logits)) - log_p.logsumexp(dim=0)


def one_point_gradient(score: Tensor, values: Tensor, *, baseline: bool = False) -> Tensor:
    r"""Stein's estimator of the gradient of :math:`E\, F(x + \delta)` in x, from values of F alone.

    With the score :math:`s = -\nabla \log p(\delta)` of the noise, :math:`\delta / \sigma^2` if it
    is Gaussian, the gradient is :math:`E[s F(x + \delta)]`; the estimator is the mean of
    :math:`s_i (F_i - b_i)` over the draws, where :math:`b_i` is 0 or, with ``baseline``, the mean
    of the *other* draws' values. Both are unbiased; so is the plain form on noise that comes in
    pairs :math:`\pm\delta`, for which a baseline without the pair would cancel.

    Args:
        score: (m, B, ...).
        values: F at the draws, (m, B).
        baseline: Subtract the leave-one-out mean; at least 2 draws.

    Returns:
        (B, ...).
    """
    m = len(values)
    if baseline:
        if m < 2:
            raise ValueError(f"a baseline needs at least 2 samples, got {m}")
        values = (values - values.mean(dim=0)) * (m / (m - 1))  # F_i - mean of the others
    flat = torch.einsum("mb,mbd->bd", values.to(score.dtype), score.flatten(2)) / m
    return flat.view(score.shape[1:])
