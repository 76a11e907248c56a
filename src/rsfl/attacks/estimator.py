"""An attack by forward passes only, along an estimate of the gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from rsfl._checks import choice, count
from rsfl.attacks.attack import Sampled
from rsfl.attacks.objective import (
    logits_at,
    one_point_gradient,
)
from rsfl.deform import Deformation
from rsfl.noise import Gaussian, Laplace, Law
from rsfl.smooth import Smoother

__all__ = ["OnePoint"]


@dataclass(frozen=True, kw_only=True)
class OnePoint(Sampled):
    """Projected descent of the vote by Stein's estimator: forward passes only, no graph, hard votes
    welcome.

    The gradient of :math:`G_y` comes from :func:`one_point_gradient`, for laws whose density has a
    gradient: Gaussian and Laplace. Steps have length 2 epsilon / steps unless ``step_size`` says
    otherwise; for the other arguments see :class:`Attack`.

    Args:
        samples: Draws of noise, m.
        estimator: ``antithetic`` draws pairs of noise and its negative (an even number), which
            never has more variance than ``plain``; ``baseline`` subtracts the other draws' mean (at
            least 2 samples), which has less still where the label wins most votes and m is not
            small.
        votes: ``soft`` for the softmax of the label, ``hard`` for whether the label wins.
    """

    estimator: str = "antithetic"
    votes: str = "soft"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("votes", self.votes, ("soft", "hard"))
        if choice("estimator", self.estimator, ("plain", "baseline", "antithetic")) == "baseline":
            count("samples", self.samples, 2)
        elif self.estimator == "antithetic" and self.samples % 2:
            raise ValueError(f"samples must be even for antithetic pairs, got {self.samples!r}")

    @override
    def draw(
        self, smoother: Smoother, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        if self.estimator != "antithetic":
            return super().draw(smoother, x, generator)
        half = smoother.noise(x, self.samples // 2, generator=generator)
        return torch.cat([half, -half])

    @override
    @torch.no_grad()
    def _gradient(
        self, smoother: Smoother, x: Tensor, y: Tensor, point: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        score = _score(smoother.law, noise)
        logits = logits_at(smoother, x, point, noise)
        if self.votes == "soft":
            dtype = torch.promote_types(logits.dtype, torch.float32)
            values = (
                logits.softmax(dim=-1, dtype=dtype)
                .gather(-1, y.expand(len(logits), -1)[..., None])
                .squeeze(-1)
            )
        else:
            values = (logits.argmax(dim=-1) == y).to(score.dtype)
        gradient = one_point_gradient(score, values, baseline=self.estimator == "baseline")
        return -gradient.to(point.dtype), logits


def _score(law: Law, noise: Tensor) -> Tensor:
    """Minus the gradient of the noise's log-density."""
    base = law.base if isinstance(law, Deformation) else law
    if isinstance(base, Gaussian):
        return noise / base.sigma**2
    if isinstance(base, Laplace):
        return noise.sign() / base.scale
    raise ValueError(
        f"law must be Gaussian or Laplace noise for OnePoint, whose density has a gradient, got "
        f"{law}"
    )
